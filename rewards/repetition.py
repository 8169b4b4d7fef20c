"""A penalty for repeated n-grams.

Run file: `agentrl.rewards.repetition:no_repetition` (3-grams of tokens, down to -1), `agentrl.rewards.repetition:repetition?size=4`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from agentrl.rewards.extract import completion_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def repetition(
    size: int = 3, max_penalty: float = -1.0, *, unit: Literal["tokens", "words"] = "tokens"
) -> Callable[..., list[float | None]]:
    """Make the penalty: `max_penalty` times the share of n-grams that occurred before; 0 where nothing repeats.

    Args:
        size: tokens or words of an n-gram; what is shorter has none and is not penalized.
        max_penalty: of a completion that is one n-gram over and over; not above 0.
        unit: sampled tokens of all turns, or lower-case words of the last assistant turn, as white space separates them.
    Raises: `ValueError` for values that make no sense.
    Source: Yeo et al. 2025, arXiv:2502.03373, app. C.2, in the form that TRL's `get_repetition_penalty_reward` gives it.
    """
    if type(size) is not int or size < 1:
        raise ValueError(f"got size {size!r}; it is a number of {unit}, at least 1")
    if not max_penalty <= 0 or max_penalty == float("-inf"):
        raise ValueError(f"got max_penalty {max_penalty!r}; a penalty is at most 0, and finite")
    if unit not in ("tokens", "words"):
        raise ValueError(f"got unit {unit!r}; it is tokens or words")

    def repetition_penalty(*, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
        """From `max_penalty` to 0."""
        sequences: list[Sequence[Any]] = list(completion_ids)
        if unit == "words":
            sequences = [completion_text(completion).lower().split() for completion in completions]
        return [_repeated(sequence, size) * max_penalty + 0.0 for sequence in sequences]  # -0.0 + 0.0 is 0.0

    return repetition_penalty


def _repeated(sequence: Sequence[Any], size: int) -> float:
    """Share of n-grams that are not the first of their kind."""
    total = len(sequence) - size + 1
    if total < 1:
        return 0.0
    distinct = set(zip(*(islice(sequence, start, None) for start in range(size)), strict=False))
    return 1 - len(distinct) / total


no_repetition = repetition()
"""With 3-grams of tokens, down to -1."""
