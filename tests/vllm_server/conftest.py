from __future__ import annotations

import pytest
from real_vllm import running, vllm_python


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory):
    """One real server of the quickstart model for all tests, whose weights they change: each sends its own first."""
    vllm_python()
    with running(tmp_path_factory.mktemp("vllm")) as server:
        yield server
