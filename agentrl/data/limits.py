"""What a model's configuration says of the texts that it takes."""

from __future__ import annotations

from typing import Any, TypedDict


class Limits(TypedDict):
    """What `prepare` holds rows to; None where nobody knows."""

    positions: int | None
    """Most tokens that the model takes."""
    vocabulary: int | None
    """Tokens that it has."""


def limits_of(model: str) -> Limits:
    """The limits that a model's configuration names.

    Args:
        model: a folder or a Hub name.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError):  # only a tokenizer there, or an architecture that this release does not know: loading the model says so
        return Limits(positions=None, vocabulary=None)
    return Limits(positions=getattr(config, "max_position_embeddings", None), vocabulary=getattr(config, "vocab_size", None))
