"""The run file's schema: strict, immutable, and free of torch, so that it loads in milliseconds anywhere.

An unknown key is an error that names the nearest key; values are validated at load, with file, key and value in the message.
Objectives are validated by their own configs, found by name in the open registry (`agentrl.objectives`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agentrl.errors import ConfigError

DEFAULT_STEPS = 100
"""Optimizer steps of an online run that does not say how many."""

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of every section: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def urls(value: list[str]) -> list[str]:
    """Addresses of servers in one form; raises `ValueError` for what is none."""
    for url in value:
        if not re.fullmatch(r"https?://[^\s/]+(:\d+)?/?", url):
            raise ValueError(f"got {url!r}; a server is http://HOST:PORT, without a path such as /v1")
    if len({url.rstrip("/") for url in value}) < len(value):
        raise ValueError("a server is named twice")
    return [url.rstrip("/") for url in value]


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
    ema: EmaConfig | None = None
    """Keep an average of the weights beside them; null keeps none."""
    precompute_reference: bool = False
    """Score the rows of an offline run under the reference once, keep that on disk, and hold no reference while training."""
    reference_sync: ReferenceSyncConfig | None = None
    """Move the reference towards the policy as it trains; null keeps it where the run began."""
    ranks: Positive = 1
    """Processes that `accelerate launch` started; checked against the launcher's own count."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """How several ranks share the model."""


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685), through peft."""

    variant: Literal["lora", "rslora", "dora"] = "lora"
    """`rslora` scales by alpha / sqrt(rank) (arXiv:2312.03732); `dora` trains magnitudes beside directions (arXiv:2402.09353)."""
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Literal[0] = 0
    """Dropout would make the learner score another distribution than the one that sampled; only 0 is allowed."""
    target_modules: str | list[str] = "all-linear"
    """Names of linear layers, such as `[q_proj, v_proj]`, or a regular expression of whole names; by default all but the output layer."""
    exclude_modules: list[str] = Field(default_factory=list)
    """Names of layers that get no adapter though `target_modules` names them."""
    layers: list[NonNegative] | None = None
    """Numbers of the decoder layers that get an adapter; null is all of them."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Names of modules that are trained whole beside the adapter and saved with it, such as a norm, or a head with weights of its own."""
    quantize: Literal["4bit", "8bit"] | None = None
    """Hold the frozen linear layers in fewer bits (QLoRA, arXiv:2305.14314): `4bit` is NF4, by bitsandbytes; `8bit` is int8 by row."""
    adapter: str | None = None
    """A folder with an adapter as peft saves it, to go on training; rank, alpha, variant and layers are then its own."""
    reference: Literal["base", "start"] | None = None
    """Of an adapter that is continued: `base` is the model without it, `start` the model with it as the run began."""

    @model_validator(mode="after")
    def _reference_of_a_continued_adapter(self) -> LoraConfig:
        if self.reference == "start" and self.adapter is None:
            raise ValueError(
                "reference=start is the model with the adapter as the run began, and a new adapter changes nothing at the start: remove "
                "it, or name an adapter folder in learner.lora.adapter"
            )
        return self


class ReferenceSyncConfig(Config):
    """An exponential moving average of the policy as the reference (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656)."""

    every: Positive = 64
    """Steps between two moves."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """reference = (1 - rate) reference + rate policy; 1 replaces it."""


class EmaConfig(Config):
    """A running average of the trained weights, in float32."""

    kind: Literal["ema", "bema"] = "ema"
    """`bema` takes the average's lag away again (Block and Zhang 2025, arXiv:2508.00180)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of `ema`: average = decay average + (1 - decay) weights, each `every` steps."""
    every: Positive | None = None
    """Steps between two updates; null is 1 for `ema` and 400 for `bema`, as in the paper."""
    after: NonNegative = 0
    """Steps before the average begins, from the weights as they are then."""
    ema_power: Annotated[float, Field(ge=0)] = 0.5
    """Of `bema`: mean = (1 - b) mean + b weights, with b = max((lag + multiplier step) ^ -ema_power, min_ema_multiplier)."""
    bias_power: Annotated[float, Field(ge=0)] = 0.2
    """Of `bema`: average = mean + a (weights - first weights), with a = (lag + multiplier step) ^ -bias_power."""
    lag: Positive = 10
    multiplier: Annotated[float, Field(ge=0)] = 1.0
    min_ema_multiplier: Share = 0.0
    export: bool = False
    """The final model is the average; otherwise the average lies beside it, in `model/ema`."""
    evaluate: bool = False
    """Evaluate the average while an offline run trains, instead of the weights."""

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> EmaConfig:
        only = ("decay",) if self.kind == "bema" else ("ema_power", "bias_power", "lag", "multiplier", "min_ema_multiplier")
        foreign = [name for name in only if getattr(self, name) != type(self).model_fields[name].default]
        if foreign:
            other = "ema" if self.kind == "bema" else "bema"
            raise ValueError(f"only `kind: {other}` reads {', '.join(foreign)}, and kind is {self.kind}: remove it, or set kind={other}")
        return self


class DataConfig(Config):
    """How the rows of a dataset become tokens, in an offline run."""

    max_length: Positive | None = None
    """Most tokens of a text; by default what the model's positions allow."""
    long_rows: Literal["error", "drop", "keep_start", "keep_end"] = "error"
    """What becomes of a row with a longer text: `keep_start` cuts its end off, `keep_end` the start of its prompt. Each is counted."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be trained ends the run before it begins, or is left out and counted."""
    completion_only: bool | None = None
    """Train the completion's tokens alone; null does where rows have a prompt and a completion."""
    assistant_only: bool = False
    """Train the tokens of the assistant's turns alone, whatever the template."""
    packing: Literal["none", "bfd", "bfd_split", "wrapped"] = "none"
    """Fill sequences of `max_length` tokens with several rows: best-fit decreasing, the same with long rows split, or all rows
    in one stream that is cut wherever a sequence is full."""
    chat_template: str | None = None
    """A file with the chat template to use in place of the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the template; a row's own `chat_template_kwargs` go over them."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns to rename, theirs to ours: `{question: prompt}`; an empty name leaves a column out."""
    convert: Literal["language_modeling", "prompt_only", "prompt_completion", "preference", "unpaired_preference", "stepwise"] | None = None
    """Convert rows to this schema, which an objective does unasked only where nothing is lost: a preference to its chosen text, say."""
    streaming: bool = False
    """Read rows as they are needed; `steps` then says how long the run is."""
    shuffle: bool = True
    """Draw rows in an order of the seed's; false takes them as they stand."""
    eval_rows: NonNegative = 0
    """Rows held out for evaluation, where no `eval_dataset` is named."""


class EvaluationConfig(Config):
    """Evaluation while an offline run trains, on rows that are not trained."""

    every: Positive | None = None
    """Optimizer steps between two evaluations; null evaluates at the end alone."""
    metric: str = "eval_loss"
    """What tells a better model from a worse one."""
    higher_is_better: bool | None = None
    """Null goes by the metric's name: lower for a loss or a KL, higher for an accuracy, a reward or a margin."""
    patience: Positive | None = None
    """Stop after so many evaluations in a row without a better one; null goes on."""
    keep_best: bool = False
    """The final model is that of the best evaluation, and not of the last step."""
    samples: NonNegative = 0
    """Prompts that the model answers at each evaluation, for people to read."""


class HubConfig(Config):
    """Where the model is pushed to; a push that fails is told, and the run goes on."""

    repo: str
    """`owner/name` on the Hugging Face Hub."""
    private: bool = True
    """A new repository is private, and an existing public one is refused."""
    token_env: str = "HF_TOKEN"
    """Environment variable that holds the token."""
    every: Positive | None = None
    """Optimizer steps between two pushes while the run goes on; null pushes the final model alone."""
    timeout_s: Seconds = 3600.0
    """Longest wait for the Hub at the end."""


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


class DatasetShareConfig(Config):
    """One of several datasets."""

    dataset: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the rows drawn, in proportion to the others'."""


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


class TeacherConfig(Config):
    """A model that the policy is distilled from; nothing trains it."""

    name: str = "teacher"
    """What the column `teacher` of a row calls it, where there are several."""
    model: str | None = None
    """A folder or Hub name, loaded beside the policy."""
    servers: list[str] = Field(default_factory=list)
    """URLs of vLLM servers that serve it; `model` is then where its tokenizer is. By default it is loaded beside the policy."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share in the loss of rows that name no teacher, in proportion to the others'."""
    temperature: Annotated[float, Field(gt=0, le=10)] | None = None
    """Of its distribution; null takes the one at which the objective compares the two."""
    timeout_s: Seconds = 120.0
    """Longest wait for its servers' scores of one text."""
    api_key_env: str = "AGENTRL_TEACHER_API_KEY"
    """Environment variable that holds the servers' key, where they ask for one."""

    @field_validator("servers")
    @classmethod
    def _urls(cls, value: list[str]) -> list[str]:
        return urls(value)

    @model_validator(mode="after")
    def _has_a_model(self) -> TeacherConfig:
        if self.model is None:
            raise ValueError("a teacher needs a model: a folder or Hub name (beside `servers`, where its tokenizer is)")
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
    """Instead of `env`, with `rewards`: a JSON-lines file whose rows have a `prompt` and the columns that the rewards read.

    For an offline objective: a file, folder or Hub name, `path?split=train`, and no rewards.
    """
    datasets: list[DatasetShareConfig] = Field(default_factory=list)
    """Instead of `dataset`, for an offline objective: several, each with a share of the rows."""
    eval_dataset: str | None = None
    """Rows that an offline run is evaluated on."""
    data: DataConfig = DataConfig()
    """How the rows of an offline run become tokens."""
    batch_size: Positive = 32
    """Rows of one optimizer step of an offline run."""
    evaluation: EvaluationConfig = EvaluationConfig()
    hub: HubConfig | None = None
    """Push the model to the Hugging Face Hub; null keeps it here. `agentrl push` does so later."""
    loggers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """What is given the metrics too, beside metrics.jsonl in the run folder."""
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
    steps: Positive | None = None
    """Optimizer steps of the whole run; 100 by default, and in an offline run what `epochs` makes of the data."""
    epochs: Positive | None = None
    """Ends the run when each training task was dispatched this often, if `steps` has not ended it before. An offline run without `steps`
    and `epochs` ends after one."""
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
    teacher: list[TeacherConfig] = Field(default_factory=list)
    """For objectives that distil: `teacher: FOLDER` is short for `teacher: [{model: FOLDER}]`. Of several each has a share in the loss, or
    the rows that name it in a column `teacher`."""
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

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run; of an offline run without `steps` only once its data is known."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @field_validator("policies")
    @classmethod
    def _named_policies(cls, value: dict[str, FrozenPolicyConfig]) -> dict[str, FrozenPolicyConfig]:
        for name in value:
            if name == "policy" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name):
                raise ValueError(f"got a policy named {name!r}; letters, digits, _ and - make a name, and `policy` is the trained one")
        return value

    def teacher_of(self, value: object, where: str) -> str | None:
        """The teacher that a row is for, by the value of its column `teacher`; None is all of them.

        Args:
            value: of the column, which means nothing where there is one teacher; None where the row has none.
            where: file and row, for messages.

        Raises `ConfigError` for a name that no teacher has.
        """
        if len(self.teacher) < 2 or value is None:
            return None
        known = [one.name for one in self.teacher]
        if value not in known:
            raise ConfigError(f"{where}: field `teacher` got {value!r:.80}; it must be one of the run file's teachers: {', '.join(known)}")
        return str(value)

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_teacher(cls, value: Any) -> Any:
        return [{"model": value}] if isinstance(value, str) else [value] if isinstance(value, dict) else value

    @field_validator("teacher")
    @classmethod
    def _named_apart(cls, value: list[TeacherConfig]) -> list[TeacherConfig]:
        names = [one.name for one in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two teachers are called {twice[0]!r}: give each a `name` of its own")
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
