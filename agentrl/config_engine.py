"""A run file's `sampling` and `engine`: how the policy samples, and what computes that."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from agentrl.config_base import Config, NonNegative, Positive, Seconds, urls


class SamplingConfig(Config):
    """How the policy samples while it trains."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Both the sampler and the learner score softmax(logits / temperature)."""
    max_tokens: Positive = 256
    """Most tokens that one turn may sample."""
    max_turns: Positive = 16
    """Most calls in one episode, those of other policies and those that are not trained among them."""
    stop: list[str] = Field(default_factory=list)
    """Further ends of a turn, beside the model's own end tokens; each must be one token of the tokenizer."""
    max_episode_tokens: Positive | None = None
    """Most tokens of an episode, prompt included; at most the context length, which is the default. Where an environment plays its
    episodes itself, of each of its conversations."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegative = 0
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _whole_distribution(self) -> SamplingConfig:
        if self.top_p < 1 or self.top_k or self.min_p:
            raise ValueError(
                "training samples from the whole distribution: the learner scores softmax(logits / temperature), "
                f"which top_p={self.top_p}, top_k={self.top_k}, min_p={self.min_p} would renormalize; "
                "set top_p=1, top_k=0, min_p=0 and shape the samples with temperature"
            )
        return self


class LaunchConfig(Config):
    """vLLM servers that the run starts, watches and ends."""

    servers: Positive = 1
    """How many servers; each has `tensor_parallel` x `data_parallel` devices."""
    python: str | None = None
    """Python of the environment that has vLLM and agentrl; by default `.venv-vllm/bin/python` where there is one, else this run's own."""
    devices: list[NonNegative] | None = None
    """GPUs of the servers, by number; by default all but the learner's."""
    tensor_parallel: Positive = 1
    data_parallel: Positive = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that a server takes."""
    cpu_kv_gib: Positive = 1
    """GiB of KV cache of a server on a CPU."""
    max_restarts: NonNegative = 3
    """Of one server in one run; then it stays away, and the run fails when it was the last one."""
    start_timeout_s: Seconds = 900.0
    """Longest wait for a server to load its model."""
    args: list[str] = Field(default_factory=list)
    """Further arguments of vLLM's own command line, one word each."""


VLLM_KEYS = ("servers", "launch", "transport", "transfer_dir", "pause", "max_requests", "api_key_env")
"""Keys of `engine` that only `kind: vllm` reads."""


class EngineConfig(Config):
    """The inference engine."""

    kind: Literal["embedded", "vllm"] = "embedded"
    """`embedded` runs transformers in a process of its own; `vllm` talks to vLLM servers, of the run's own or somebody else's."""
    threads: Positive | None = None
    """CPU threads of the engine; by default half of the cores, or all of them where max_staleness is 0."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: the last CUDA device where there is one. For vLLM `cpu`, `cuda` or `auto`; see launch.devices."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 on CUDA and float32 on a CPU."""
    slots: Positive = 128
    """Requests decoded at once; more wait in a queue."""
    context_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens a request may hold, prompt and completion; by default what the model allows, at most 4096."""
    kv: Literal["keep", "recompute"] = "keep"
    """What a weight update does to the KV cache of requests in flight: keep it, or compute it again under the new weights."""
    timeout_s: Seconds = 300.0
    """Longest wait for one answer of the engine."""
    servers: list[str] = Field(default_factory=list)
    """URLs of running vLLM servers to join, such as http://10.0.0.2:8000; `agentrl serve` starts one."""
    launch: LaunchConfig | None = None
    """Start vLLM servers on the devices left to them; what `kind: vllm` does where no `servers` are named."""
    transport: Literal["auto", "filesystem", "lora", "nccl", "stream"] = "auto"
    """How weights reach vLLM. `auto` is lora where learner.lora is set and vLLM serves such an adapter (no DoRA, no quantized base), nccl
    from a CUDA learner to servers on other GPUs of this machine, and filesystem otherwise."""
    transfer_dir: str | None = None
    """Folder that learner and servers share, for the transports filesystem and lora; by default one of this machine, in memory."""
    pause: Literal["keep", "wait"] = "keep"
    """While vLLM's weights change: freeze the requests in flight, or let them finish first."""
    max_requests: Positive | None = None
    """Most requests in flight on one vLLM server; by default its own KV cache and queue decide."""
    api_key_env: str = "AGENTRL_VLLM_API_KEY"
    """Environment variable that holds the servers' API key, where they ask for one."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"got {value!r}; it must be auto, cpu, cuda, or cuda:N")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> EngineConfig:
        if self.kind == "embedded":
            default = {name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()}
            foreign = [name for name in VLLM_KEYS if getattr(self, name) != default[name]]
            if foreign:
                raise ValueError(f"only `kind: vllm` reads {', '.join(foreign)}, and kind is embedded; set engine.kind=vllm or remove it")
        elif self.servers and self.launch is not None:
            raise ValueError("servers and launch are both set: join the running ones or start new ones; remove one of the two")
        return self

    @field_validator("servers")
    @classmethod
    def _urls(cls, value: list[str]) -> list[str]:
        return urls(value)
