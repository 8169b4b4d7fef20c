from __future__ import annotations

import pytest
import real_vllm
from publish_fleet import Fleet


@pytest.fixture(scope="session")
def vllm_python():
    """Python of vLLM's environment."""
    return real_vllm.vllm_python()


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory, vllm_python):
    """One real server of the quickstart model for all tests, whose weights they change: each sends its own first."""
    with real_vllm.running(tmp_path_factory.mktemp("vllm"), python=vllm_python, lora={"rank": 8}) as server:
        yield server


@pytest.fixture
def fleet(vllm_server):
    """That server with the learner's model beside it."""
    made = Fleet(vllm_server.url)
    yield made
    for publisher in made.publishers:
        publisher.close()
    made.http.close()
