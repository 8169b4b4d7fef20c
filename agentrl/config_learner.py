"""A run file's `learner`: the optimizer, adapters and averages of weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentrl.config_base import Config, NonNegative, Positive, Share


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
    head_chunk_mib: Positive | None = None
    """Memory for the float32 logits of one tile of the vocabulary, in MiB; by default 64 on a CPU and 512 on CUDA."""
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
