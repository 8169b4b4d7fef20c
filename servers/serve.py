"""The body of `agentrl serve`: a vLLM server at a terminal."""

from __future__ import annotations

import http.client
import os
import socket
import time
import urllib.request
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError, SamplerUnavailable
from agentrl.servers.vllm_options import LoraOptions, ServerOptions, api_key, url
from agentrl.servers.vllm_server import VllmServer, ended, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

START_TIMEOUT_S = 3600.0
"""For downloading and loading a model."""
_LOOK_S = 1.0
"""Between two looks at a server that loads: vLLM tells nobody that it is ready, so it has to be asked."""


def serve(options: ServerOptions, *, say: Callable[[str], None]) -> None:
    """Run a server until it is interrupted; raises `SamplerUnavailable` when vLLM ends by itself.

    Args:
        options: what to serve, and how.
        say: is given one line as soon as the server answers.
    """
    options, words, variables = prepare(options, os.environ)
    address = url(options, socket.gethostname())
    with VllmServer(words, variables) as server:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (status := server.wait(_LOOK_S)) is None and not is_healthy(options):
            if time.monotonic() > deadline:
                raise SamplerUnavailable(f"vLLM did not answer within {START_TIMEOUT_S:.0f} s; the reason may be in its lines above")
        if status is None:
            say(ready_line(options, address, with_key=bool(api_key(options, os.environ))))
            status = server.wait()
        raise SamplerUnavailable(ended(status or 0))


def ready_line(options: ServerOptions, address: str, *, with_key: bool) -> str:
    """What is printed when the server answers: where it is, and the run file's section that joins it."""
    key = f", api_key_env: {options.api_key_env}" if with_key else ""
    return f"{options.model} is served at {address}; in a run file: engine: {{kind: vllm, servers: [{address}]{key}}}"


def is_healthy(options: ServerOptions) -> bool:
    """Whether the server, on this machine, says that it can generate."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(options.host, options.host)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands between a machine and itself
    try:
        with opener.open(f"{url(options, host)}/health", timeout=10) as answer:
            return bool(answer.status == http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):  # URLError is one
        return False


def options_from_flags(
    model: str, *, devices: str | None, lora_rank: int | None, max_loras: int | None, args: list[str] | None, **flags: object
) -> ServerOptions:
    """Options as the command line gives them.

    Args:
        model: folder or Hub name.
        devices: numbers with commas between them.
        lora_rank: of the largest adapter; None for a server without adapters.
        max_loras: adapters at once.
        args: further words for vLLM.
        flags: further fields of `ServerOptions`; None is the default.
    """
    try:
        numbers = None if devices is None else tuple(int(number) for number in devices.split(","))
    except ValueError:
        raise ConfigError(f"--devices {devices}: give the numbers of GPUs with commas between them, such as 1,2") from None
    if lora_rank is None and max_loras is not None:
        raise ConfigError(f"--max-loras {max_loras} makes room for adapters, and there is no --lora-rank; give both")
    for name, allowed in _CHOICES.items():
        if flags.get(name) not in (None, *allowed):
            raise ConfigError(f"--{name} {flags[name]}: it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
    lora = (
        None
        if lora_rank is None
        else LoraOptions(rank=lora_rank)
        if max_loras is None
        else LoraOptions(rank=lora_rank, max_loras=max_loras)
    )
    given = {name: value for name, value in flags.items() if value is not None}
    return ServerOptions(model=model, devices=numbers, lora=lora, args=tuple(args or ()), **given)  # type: ignore[arg-type]  # typer has checked them


_CHOICES = {"device": ("auto", "cpu", "cuda"), "dtype": ("auto", "float32", "bfloat16"), "transfer": ("agentrl", "nccl")}
