from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agentrl.config import RunConfig
from agentrl.config_engine import EngineConfig
from agentrl.config_learner import LearnerConfig, LoraConfig
from agentrl.engines.vllm_launch import Launcher, free_port, server_options
from agentrl.engines.vllm_setup import make_servers, transport_of
from agentrl.errors import ConfigError
from agentrl.follow import sends_adapter

if TYPE_CHECKING:
    from pathlib import Path


def options(launch: dict[str, Any], gpus: list[int], **more: Any) -> list[dict[str, Any]]:
    engine = EngineConfig(kind="vllm", launch=launch, **more)  # type: ignore[arg-type]
    return server_options(engine, "model", lora=None, transport="filesystem", threads=4, gpus=gpus)


def test_servers_share_the_gpus_that_are_left_in_order() -> None:
    found = options({"servers": 2, "tensor_parallel": 2}, [1, 2, 3, 4, 5])
    assert [one["devices"] for one in found] == [[1, 2], [3, 4]]
    assert [one["threads"] for one in found] == [None, None]
    assert {one["transfer"] for one in found} == {"agentrl"}


def test_named_devices_come_before_those_left() -> None:
    assert [one["devices"] for one in options({"devices": [0], "gpu_memory_utilization": 0.4}, [1, 2])] == [[0]]


def test_too_few_gpus_are_told_before_anything_starts() -> None:
    with pytest.raises(
        ConfigError, match=r"3 servers of tensor_parallel 2 x data_parallel 1 need 6 GPUs, and these are left to them: 1, 2, 3"
    ):
        options({"servers": 3, "tensor_parallel": 2}, [1, 2, 3])


def test_on_a_cpu_servers_share_the_engines_threads() -> None:
    found = options({"servers": 2, "cpu_kv_gib": 3, "args": ["--seed", "1"]}, [], device="cpu", slots=7, context_length=99)
    assert [one["devices"] for one in found] == [None, None]
    assert [one["threads"] for one in found] == [2, 2]
    assert (found[0]["cpu_kv_gib"], found[0]["slots"], found[0]["context_length"], found[0]["args"]) == (3, 7, 99, ["--seed", "1"])


def test_adapters_get_room_only_where_they_travel() -> None:
    engine = EngineConfig(kind="vllm")
    launch = engine.model_copy(update={"launch": EngineConfig(kind="vllm", launch={}).launch})  # type: ignore[arg-type]
    for transport, room in (("lora", {"rank": 5, "max_loras": 3}), ("filesystem", None)):
        assert server_options(launch, "m", lora=LoraConfig(rank=5), transport=transport, threads=1, gpus=[])[0]["lora"] == room


@pytest.mark.parametrize(
    ("lora", "transport", "expected"),
    [(None, "auto", "filesystem"), ({"rank": 4}, "auto", "lora"), ({"rank": 4}, "stream", "stream"), (None, "nccl", "nccl")],
)
def test_the_transport_follows_what_is_trained(lora: Any, transport: Any, expected: str) -> None:
    learner = LearnerConfig(device="cpu", lora=lora)
    config = RunConfig(model="m", engine=EngineConfig(kind="vllm", transport=transport), learner=learner)
    assert transport_of(config) == expected
    assert sends_adapter(config) is (expected == "lora")
    assert not sends_adapter(RunConfig(model="m", learner=learner))


def test_joined_servers_are_not_started(tmp_path: Path) -> None:
    config = RunConfig(model="m", engine=EngineConfig(kind="vllm", servers=["http://127.0.0.1:9"]), learner=LearnerConfig(device="cpu"))
    servers = make_servers(config, "m", logs=tmp_path, threads=1, say=lambda line: None)
    servers.start()
    servers.close()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_says_what_to_do(tmp_path: Path) -> None:
    """This Python has no vLLM."""
    launcher = Launcher(name="vLLM server 0", options={"model": str(tmp_path), "python": sys.executable}, log=tmp_path / "vllm-0.log")
    assert launcher.describe_end() == "vLLM server 0 was not started"
    launcher.start()
    assert launcher.child is not None
    assert launcher.child.process.wait(60) == 2
    assert launcher.ended()
    assert launcher.was_refused()
    assert "make setup-vllm" in launcher.describe_end()
    port = launcher.port
    launcher.start()  # again, where clients know it
    assert launcher.port == port
    launcher.stop()
    assert launcher.ended()


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
