"""The run file's schema: strict, immutable, and free of torch, so that it loads in milliseconds anywhere.

An unknown key is an error that names the nearest key; values are validated at load, with file, key and value in the message.
Objectives are validated by their own configs, found by name in the open registry (`agentrl.objectives`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of every section: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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
    """How weights reach vLLM. `auto` is lora where learner.lora is set, nccl from a CUDA learner to servers on other GPUs of this machine,
    and filesystem otherwise."""
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
        for url in value:
            if not re.fullmatch(r"https?://[^\s/]+(:\d+)?/?", url):
                raise ValueError(f"got {url!r}; a server is http://HOST:PORT, without a path such as /v1")
        if len({url.rstrip("/") for url in value}) < len(value):
            raise ValueError("a server is named twice")
        return [url.rstrip("/") for url in value]


class LearnerConfig(Config):
    """The optimizer's side."""

    lr: Annotated[float, Field(ge=0)] = 1e-6
    """Peak learning rate; 0 is a valid control run."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: constant, or a decay to `min_lr_ratio` of the peak at the last step."""
    warmup_steps: NonNegative = 0
    min_lr_ratio: Share = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are clipped to this global L2 norm; null turns clipping off."""
    tokens_per_micro_batch: Positive = 16384
    """Most tokens of one packed forward; a longer row goes alone. It changes memory and speed, never the gradient."""
    head_chunk_mib: Positive = 64
    """Memory for the float32 logits of one chunk of trained positions, in MiB."""
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto`: the first CUDA device where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the forward pass; master weights and optimizer state stay float32. `auto` is bfloat16 on CUDA, float32 on a CPU."""
    threads: Positive | None = None
    """CPU threads of the learner; by default the cores that the engine leaves, or all of them where max_staleness is 0."""
    mask_truncated: bool = False
    """Train nothing of a truncated episode (it stays in its group's baseline)."""
    lora: LoraConfig | None = None
    """Train a LoRA adapter instead of all weights; the reference is then the model without it."""
    reference_sync: ReferenceSyncConfig | None = None
    """Move the reference towards the policy as it trains; null keeps it where the run began."""
    ranks: Positive = 1
    """Processes that `accelerate launch` started; checked against the launcher's own count."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """How several ranks share the model."""


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), through peft."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Literal[0] = 0
    """Dropout would make the learner score another distribution than the one that sampled; only 0 is allowed."""
    target_modules: str | list[str] = "all-linear"


class ReferenceSyncConfig(Config):
    """An exponential moving average of the policy as the reference (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656)."""

    every: Positive = 64
    """Steps between two moves."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """reference = (1 - rate) reference + rate policy; 1 replaces it."""


class RolloutConfig(Config):
    """The generator side: processes, deadlines and what is tolerated."""

    processes: Positive = 1
    """Rollout processes; each plays many episodes at once."""
    env_workers: Positive = 2
    """Killable processes, for each rollout process, in which environments and rewards run."""
    score_timeout_s: Seconds = 30.0
    """Wall clock of one scoring call; past it the worker is killed and the rollout is unscorable."""
    tool_timeout_s: Seconds = 30.0
    """Wall clock of one tool call."""
    episode_timeout_s: Seconds = 600.0
    """Wall clock of one episode."""
    max_tool_output_chars: Positive = 8192
    """A longer tool result is cut, with a notice that the model sees."""


class CheckpointConfig(Config):
    """When state is written."""

    every: Positive = 50
    """Optimizer steps between checkpoints; one is also written at the end and on interruption."""
    keep: Positive = 2
    """Newest checkpoints kept."""


class LimitsConfig(Config):
    """When a run that goes nowhere stops."""

    max_unscorable_share: Share = 0.5
    """The run stops when more than this share of the last `window_groups` groups had no scorable rollout."""
    window_groups: Positive = 64
    max_filtered_groups: Positive = 512
    """The run stops when this many groups in a row had equal rewards and others were played in their place (dynamic sampling)."""
    wait_s: Seconds = 900.0
    """Longest wait of the learner for a batch."""
    quarantine_after: Positive | None = 3
    """A task is not played again after so many groups in a row that could not be scored; null plays it for ever."""


class CurriculumConfig(Config):
    """Difficulty pools, by the share of a task's rollouts that solve it; others are drawn in place of what is left out."""

    easy_rate: Share = 0.9
    """A task is easy from this pass rate on."""
    hard_rate: Share = 0.1
    """A task is hard up to this pass rate."""
    easy_share: Share = 0.1
    """Share of the times that an easy task's turn comes at which it is played."""
    hard_share: Share = 0.5
    """The same for hard tasks."""
    solved_at: float = 1.0
    """A rollout with at least this score has solved its task."""

    @model_validator(mode="after")
    def _apart(self) -> CurriculumConfig:
        if self.hard_rate >= self.easy_rate:
            raise ValueError(f"hard_rate={self.hard_rate} must lie below easy_rate={self.easy_rate}: a task is in one pool at a time")
        return self


class EnvShareConfig(Config):
    """One of several environments."""

    env: str
    """Its spec."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the training tasks, in proportion to the others'."""


class ReplayConfig(Config):
    """Groups of earlier steps, trained again in the place of those whose rewards are all equal."""

    size: Positive = 64
    """Most groups that are kept: those whose rewards differ most."""
    max_age: Positive | None = None
    """Optimizer steps after which a group is forgotten; null keeps it until others push it out."""


class WarmStartConfig(Config):
    """Optimizer steps on the rollouts of an earlier run, before the first step of this one."""

    run: str
    """Folder of the earlier run; its `rollouts/` are read, in the order in which they were logged, and begun again at their end."""
    mode: Literal["supervised", "off_policy"] = "supervised"
    """`supervised`: the likelihood of the best rollouts; `off_policy`: the run's own objective, against the policy that sampled them."""
    steps: Positive = 50
    """Optimizer steps, of `groups_per_step` groups each; the run's own `steps` come after them."""
    min_reward: float | None = None
    """Supervised: least score of a rollout that is imitated; null takes the best of each group in which scores differ."""
    lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate of these steps, without a schedule; null takes `learner.lr`."""

    @model_validator(mode="after")
    def _reward_is_for_imitation(self) -> WarmStartConfig:
        if self.mode == "off_policy" and self.min_reward is not None:
            raise ValueError(
                "min_reward chooses rollouts to imitate, and mode off_policy trains all of them: remove it, or set mode=supervised"
            )
        return self


class FrozenPolicyConfig(Config):
    """A further policy that environments may ask for turns: an opponent, a user simulator, a judge. Nothing trains it."""

    model: str | None = None
    """A folder or Hub name; null is the run's own model, as it began."""
    update_every: Positive | None = None
    """Take over the trained policy's weights each so many optimizer steps (self-play against an earlier self); null never does."""
    keep: Literal["needed", "all"] = "needed"
    """Which of those weights stay in the run folder: what a resume needs, or every version."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """0 is greedy."""
    servers: list[str] = Field(default_factory=list)
    """URLs of vLLM servers that serve it; `model` is then where its tokenizer is. By default an embedded engine of its own."""

    @model_validator(mode="after")
    def _consistent(self) -> FrozenPolicyConfig:
        if self.update_every and (self.model is not None or self.servers):
            raise ValueError("update_every gives it the run's own weights: remove model and servers, or update_every")
        if self.servers and self.model is None:
            raise ValueError("servers serve a model of their own: name the folder or Hub name with its tokenizer in model")
        return self


class RunConfig(Config):
    """A whole run file."""

    model: str
    """A folder or Hub name that transformers loads, or `quickstart`: the small model that ships with agentrl."""
    env: str | None = None
    """An environment spec: `name?arg=value`, `file.py:Name` or `package.module:Name`."""
    envs: list[EnvShareConfig] = Field(default_factory=list)
    """Instead of `env`: several environments, each with a share of the tasks."""
    dataset: str | None = None
    """Instead of `env`, with `rewards`: a JSON-lines file whose rows have a `prompt` and the columns that the rewards read."""
    rewards: list[str] = Field(default_factory=list)
    """Reward functions for `dataset`: `file.py:function`, `package.module:function`, or what a factory makes, `module:factory?arg=value`.

    Each is `f(prompts, completions, completion_ids, **columns) -> list[float | None]`.
    """
    reward_weights: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=list)
    """Weights of `rewards`, one each, in their order; all 1 by default. (`objective.reward_weights` weighs parts of scores by name.)"""
    judge: str | None = None
    """A function for `dataset` that compares two completions, for objectives that learn from preferences; beside `rewards`, or without.

    It is `f(prompts, completions) -> list[int]`, a pair of completions a prompt: 0 the first is better, 1 the second, -1 cannot tell.
    """
    imports: list[str] = Field(default_factory=list)
    """Modules or files that every process imports first: they register environments and objectives."""
    objective: dict[str, Any] = Field(default_factory=lambda: {"name": "grpo"})
    """`grpo` is short for `{name: grpo}`; the other keys are the objective's own."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Positive = 100
    """Optimizer steps of the whole run."""
    epochs: Positive | None = None
    """Ends the run when each training task was dispatched this often, if `steps` has not ended it before."""
    group_size: Positive = 8
    """Rollouts of one task."""
    groups_per_step: Positive = 16
    """Tasks of one optimizer step."""
    max_staleness: NonNegative = 1
    """Optimizer steps that a sampled token may lag behind the step that trains it; 0 is exactly synchronous."""
    batch_order: Literal["dispatch", "finished"] = "dispatch"
    """`dispatch`: a step trains the oldest groups, in dispatch order. `finished`: the oldest that are finished, within the bound."""
    on_bound: Literal["wait", "requeue", "over"] = "wait"
    """When the step waits for a group older than the bound: wait for it, cancel it and play the task again, or go past the bound."""
    policies: dict[str, FrozenPolicyConfig] = Field(default_factory=dict)
    """Frozen policies by the names that environments call them, beside `policy`, the one that is trained."""
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    rollout: RolloutConfig = RolloutConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    limits: LimitsConfig = LimitsConfig()
    curriculum: CurriculumConfig | None = None
    """Draw tasks by how often they are solved; null plays each once an epoch."""
    replay: ReplayConfig | None = None
    """Train groups of earlier steps in the place of those without a signal; null trains the step's own groups only."""
    warm_start: WarmStartConfig | None = None
    """Begin with optimizer steps on the rollouts of an earlier run; null begins with the model as it is."""
    output: str | None = None
    """The run folder; by default `runs/<env>-<model>-<date>-<time>`."""

    @field_validator("policies")
    @classmethod
    def _named_policies(cls, value: dict[str, FrozenPolicyConfig]) -> dict[str, FrozenPolicyConfig]:
        for name in value:
            if name == "policy" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name):
                raise ValueError(f"got a policy named {name!r}; letters, digits, _ and - make a name, and `policy` is the trained one")
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _short_objective(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("objective")
    @classmethod
    def _named_objective(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "name" not in value:
            raise ValueError("objective needs a name: write `objective: grpo` or `objective: {name: grpo, ...}`")
        return value


LearnerConfig.model_rebuild()
