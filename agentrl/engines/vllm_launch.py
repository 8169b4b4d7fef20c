"""The servers of a run one by one: what its own are started with, and how they are started, ended and started again.

`agentrl.servers` starts vLLM itself, in vLLM's environment; it is found by name, as everything that the core does not depend on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agentrl.engines.vllm_control import RouteFailed
from agentrl.errors import ConfigError
from agentrl.processes import Child, start_child

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentrl.config_engine import EngineConfig
    from agentrl.config_learner import LoraConfig
    from agentrl.engines.vllm_control import Control
    from agentrl.engines.vllm_facts import ServerFacts

MODULE = "agentrl.servers.vllm_server"
WRONG_CONFIG = 2
"""Its exit status for options that no server can have on this machine."""
MAX_LORAS = 3
"""Adapters at once: the newest, and those that requests in flight still use."""
LOOK_TIMEOUT_S = 3.0
"""For a server to say that it is well."""
END_S = 40.0
"""For vLLM to end by itself; its processes are killed after that."""


def server_options(
    engine: EngineConfig, model: str, *, lora: LoraConfig | None, transport: str, threads: int, gpus: Sequence[int]
) -> list[dict[str, Any]]:
    """What each server to launch is started with, as the JSON values of `ServerOptions` without a port.

    Args:
        engine: with `launch`.
        model: folder or Hub name.
        lora: the learner's adapter.
        transport: the resolved one.
        threads: CPU threads of each server, where it computes on the CPU.
        gpus: those left to the servers; empty on a machine without any.

    Raises `ConfigError` where there are too few GPUs.
    """
    launch = engine.launch
    assert launch is not None
    width = launch.tensor_parallel * launch.data_parallel
    chosen = list(launch.devices if launch.devices is not None else gpus)
    if chosen and len(chosen) < width * launch.servers:
        raise ConfigError(
            f"engine.launch: {launch.servers} servers of tensor_parallel {launch.tensor_parallel} x data_parallel {launch.data_parallel} "
            f"need {width * launch.servers} GPUs, and these are left to them: {', '.join(map(str, chosen))}; lower one of the three"
        )
    common: dict[str, Any] = {
        "model": model,
        "api_key_env": engine.api_key_env,
        "device": engine.device.partition(":")[0],
        "tensor_parallel": launch.tensor_parallel,
        "data_parallel": launch.data_parallel,
        "dtype": engine.dtype,
        "context_length": engine.context_length,
        "slots": engine.slots,
        "gpu_memory_utilization": launch.gpu_memory_utilization,
        "cpu_kv_gib": launch.cpu_kv_gib,
        "threads": None if chosen else max(1, threads // launch.servers),
        "lora": {"rank": lora.rank, "max_loras": MAX_LORAS} if lora is not None and transport == "lora" else None,
        "transfer": "nccl" if transport == "nccl" else "agentrl",
        "python": launch.python,
        "args": launch.args,
    }
    devices = [chosen[start * width : (start + 1) * width] if chosen else None for start in range(launch.servers)]
    return [common | {"devices": mine} for mine in devices]


@dataclass
class Launcher:
    """One server of the run's own, which may be started again and again. It ends by itself when this process does."""

    name: str
    options: dict[str, Any]
    log: Path
    port: int = 0
    child: Child | None = None
    restarts: int = 0
    _lifeline: int = -1

    @property
    def url(self) -> str:
        """Where it listens once it has been started."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it loads while the caller goes on. What was left of an earlier one is ended first."""
        self.stop()
        self.port = self.port or free_port()
        watched, self._lifeline = os.pipe()
        try:
            text = json.dumps(self.options | {"port": self.port})
            arguments = ["--options", text, "--lifeline-fd", str(watched)]
            self.child = start_child(self.name, MODULE, arguments, log=self.log, pass_fds=[watched])
        finally:
            os.close(watched)

    def ended(self) -> bool:
        """Whether it is no longer there."""
        return self.child is None or self.child.process.poll() is not None

    def describe_end(self) -> str:
        """One line with its own last words."""
        return f"{self.name} was not started" if self.child is None else self.child.describe_end()

    def was_refused(self) -> bool:
        """Whether it has ended because of what it was started with."""
        return self.child is not None and self.child.process.poll() == WRONG_CONFIG

    def stop(self) -> None:
        """End it and everything that it started."""
        if self.child is not None:
            self.child.stop(END_S)
            self.child = None
        if self._lifeline >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lifeline)
            self._lifeline = -1


@dataclass
class Server:
    """One server's state; everything but `suspicions` and `trouble` changes under the lock alone."""

    url: str
    control: Control
    launcher: Launcher | None = None
    """None for a server that somebody else runs."""
    state: Literal["starting", "serving", "away", "lost"] = "starting"
    facts: ServerFacts | None = None
    suspicions: list[str] = field(default_factory=list)
    """What rollouts reported since the last time that the server was brought into use."""
    trouble: str = ""
    """Why it is out of use."""

    def is_well(self) -> bool:
        """Whether it says now that it can generate; `trouble` says why not."""
        if self.has_ended() and self.launcher is not None:
            self.trouble = self.launcher.describe_end()
            return False
        try:
            self.control.is_well(LOOK_TIMEOUT_S)
        except RouteFailed as error:
            self.trouble = str(error)
            return False
        if self.state == "serving":
            self.trouble = ""
        return True

    def has_ended(self) -> bool:
        """Whether it is one of the run's own, and no longer there."""
        return self.launcher is not None and self.launcher.ended()

    @property
    def name(self) -> str:
        """For messages."""
        return self.url if self.launcher is None else f"{self.launcher.name} ({self.url})"


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
