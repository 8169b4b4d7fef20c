"""Which architectures the fast path decodes, and what it asks of their configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Unsupported(Exception):
    """A decoder does not reproduce this model; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets one architecture apart from Llama."""

    qk_norm: bool = False
    """RMS norm over each head of queries and keys."""
    sandwich: bool = False
    """Norms before and after each block (Gemma), whose weights are stored minus one; embeddings scaled by sqrt(hidden size)."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(qk_norm=True),
    "gemma3_text": Family(qk_norm=True, sandwich=True),
}
"""By `model_type`. What a config says beyond this is checked in `family_of`, and the whole by a probe."""


UNHANDLED = (
    "attention_chunk_size",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "use_bidirectional_attention",
    "mlp_bias",
    "quantization_config",
)
"""Options of configs that must be absent or off."""


def family_of(config: Any) -> Family:
    """The family of a model's config; raises `Unsupported` where the fast path does not handle all that it says."""
    if config.model_type not in FAMILIES:
        raise Unsupported(f"there is no fast path for {config.model_type}")
    family = FAMILIES[config.model_type]
    for key in UNHANDLED:
        if getattr(config, key, None):
            raise Unsupported(f"the fast path does not handle {key}={getattr(config, key)!r}")
    expected = "gelu_pytorch_tanh" if family.sandwich else "silu"
    if activation(config) != expected:
        raise Unsupported(f"the fast path expects the activation {expected!r} of {config.model_type}, not {activation(config)!r}")
    return family


def activation(config: Any) -> str:
    """Name of the activation function."""
    name: str = getattr(config, "hidden_activation", None) or config.hidden_act
    return name
