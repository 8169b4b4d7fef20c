"""What a run file's `engine: {kind: vllm}` comes to: the servers, the transport of weights, and what each server has to be."""

from __future__ import annotations

import importlib.util
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.adapter_folder import settled, whole_only
from agentrl.config_engine import LaunchConfig
from agentrl.engines.vllm_control import Control, http_client
from agentrl.engines.vllm_launch import MAX_LORAS, Launcher, Server, server_options
from agentrl.engines.vllm_preflight import Expectations
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_servers import VllmServers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from agentrl.config import RunConfig
    from agentrl.engines.vllm_transports.base import Transport

START_TIMEOUT_S = 30.0
"""For servers that are said to run already."""
PROBED_TEXT = "The quick brown fox jumps over 13 lazy dogs; x = (a + b) / 2."
"""Tokenized on both sides. Its words, digits and signs fall apart differently in any two vocabularies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What the transport `lora` needs to know of the learner's adapter before the first publish."""

    config: dict[str, Any]
    """peft's, as JSON values."""
    weights: Sequence[tuple[str, torch.Tensor]]
    """As training starts."""


def transport_of(config: RunConfig) -> str:
    """How weights travel, `auto` resolved."""
    engine = config.engine
    if engine.transport != "auto":
        return engine.transport
    if config.learner.lora is not None and whole_only(config.learner.lora) is None:
        return "lora"
    between_gpus = not engine.servers and learner_gpus(config) > 0 and importlib.util.find_spec("vllm") is not None
    return "nccl" if between_gpus else "filesystem"


def learner_gpus(config: RunConfig) -> int:
    """GPUs that the learner takes, from the first one on; 0 where it computes on the CPU."""
    if config.learner.device == "cpu":
        return 0
    import torch

    return config.learner.ranks if torch.cuda.is_available() else 0


def make_servers(config: RunConfig, model: str, *, logs: Path, threads: int, say: Callable[[str], None]) -> VllmServers:
    """The run's servers, none of them started or asked yet.

    Args:
        config: with `engine.kind` vllm.
        model: folder or Hub name of the policy.
        logs: folder for the servers' own output.
        threads: CPU threads of all servers together.
        say: is told what happens to them.
    """
    engine = config.engine
    http = http_client()
    key = os.environ.get(engine.api_key_env, "")

    def control(url: str) -> Control:
        return Control(url, http, key=key, timeout_s=engine.timeout_s)

    launch = engine.launch or LaunchConfig()
    servers = [Server(url=url, control=control(url)) for url in engine.servers]
    if not servers:
        taken = learner_gpus(config)
        options = server_options(
            engine.model_copy(update={"launch": launch}),
            model,
            lora=None if config.learner.lora is None else settled(config.learner.lora),
            transport=transport_of(config),
            threads=threads,
            gpus=_other_gpus(config, taken),
        )
        for number, one in enumerate(options):
            launcher = Launcher(name=f"vLLM server {number}", options=one, log=logs / f"vllm-{number}.log")
            servers.append(Server(url=launcher.url, control=control(launcher.url), launcher=launcher))
    return VllmServers(
        servers,
        start_timeout_s=START_TIMEOUT_S if engine.servers else launch.start_timeout_s,
        away_timeout_s=engine.timeout_s if engine.servers else engine.timeout_s + launch.start_timeout_s,
        max_restarts=launch.max_restarts,
        control=control,
        say=say,
    )


def _other_gpus(config: RunConfig, taken: int) -> Sequence[int]:
    if config.engine.device == "cpu":
        return ()
    import torch

    return range(taken, torch.cuda.device_count())


def make_publisher(config: RunConfig, servers: VllmServers, adapter: Adapter | None) -> VllmPublisher:
    """What brings weights to the servers; `adapter` is needed for the transport `lora` alone."""
    transport = _transport(config, servers, adapter)
    partial = transport_of(config) == "lora"
    return VllmPublisher(transport, servers.control, pause=config.engine.pause, kv=config.engine.kv, partial=partial)


def _transport(config: RunConfig, servers: VllmServers, adapter: Adapter | None) -> Transport:
    engine, kind = config.engine, transport_of(config)
    dtype = None if engine.dtype == "auto" else engine.dtype
    if kind == "lora":
        from agentrl.engines.vllm_transports.lora import LoraTransport

        assert adapter is not None, "the run gives its adapter where the transport is lora"
        return LoraTransport(adapter.config, adapter.weights, parent=engine.transfer_dir, max_loras=MAX_LORAS)
    if kind == "nccl":
        from agentrl.engines.vllm_transports.nccl import NcclTransport

        return NcclTransport(dtype=dtype)
    if kind == "stream":
        from agentrl.engines.vllm_transports.stream import StreamTransport

        return StreamTransport(dtype=dtype)
    from agentrl.engines.vllm_transports.filesystem import FilesystemTransport

    return FilesystemTransport(engine.transfer_dir, dtype=dtype)


def expectations(config: RunConfig, model: str, owner: str, *, reference: bool = False) -> Expectations:
    """What each server has to be.

    Args:
        config: the run file.
        model: folder or Hub name of the policy.
        owner: names the run on this machine, towards servers that it joins.
        reference: whether requests will have a `reference_share`.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    transport: Any = transport_of(config)
    return Expectations(
        owner=f"{socket.gethostname()}:{owner}",
        context_length=config.engine.context_length,
        model=AutoConfig.from_pretrained(model).get_text_config().to_dict(),
        dtype=None if config.engine.dtype == "auto" else config.engine.dtype,
        text=PROBED_TEXT,
        text_ids=tuple(tokenizer(PROBED_TEXT, add_special_tokens=False).input_ids),
        transport=transport,
        lora_rank=settled(config.learner.lora).rank if config.learner.lora is not None else 0,
        reference=reference,
    )
