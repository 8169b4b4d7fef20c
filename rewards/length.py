"""Rewards for the length of a completion, in sampled tokens (of all turns).

Run file: `agentrl.rewards.length:soft_overlong?max_tokens=512&buffer=128`, `agentrl.rewards.length:cosine?max_tokens=512`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from typing import TYPE_CHECKING, Any

from agentrl.reward_call import required

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MATH = "agentrl.rewards.math_answer:math_reward"


def soft_overlong(max_tokens: int, buffer: int) -> Callable[..., list[float | None]]:
    """Make the soft overlong punishment: 0 up to `max_tokens - buffer` tokens, then down to -1 at `max_tokens`, and -1 beyond.

    Args:
        max_tokens: the longest completion that is not punished in full; a run's `sampling.max_tokens`, or less.
        buffer: tokens over which the punishment grows; with 0 there is no way between 0 and -1.
    Raises: `ValueError` for lengths that make no sense.
    Source: DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.
    """
    _check_length("max_tokens", max_tokens, least=1)
    _check_length("buffer", buffer, least=0)
    if buffer > max_tokens:
        raise ValueError(f"got buffer {buffer} and max_tokens {max_tokens}; the buffer is a part of the length")
    free = max_tokens - buffer

    def soft_overlong_punishment(*, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
        """From -1 to 0 by the number of tokens."""
        lengths = [len(ids) for ids in completion_ids]
        return [0.0 if length <= free else (free - length) / buffer if length <= max_tokens else -1.0 for length in lengths]

    return soft_overlong_punishment


def cosine(
    max_tokens: int,
    *,
    correct: str | Callable[..., Any] = MATH,
    correct_at_0: float = 1.0,
    correct_at_max: float = 0.5,
    wrong_at_0: float = -1.0,
    wrong_at_max: float = -0.5,
    too_long: float = -1.0,
) -> Callable[..., list[float | None]]:
    """Make the cosine reward: a correct answer is worth more the shorter it is, a wrong one less.

    The reward moves on half a cosine from its value at no tokens to that at `max_tokens`; a completion of `max_tokens` or more gets
    `too_long`, right or wrong. The defaults keep it within [-1, 1] and every correct answer above every wrong one.

    Args:
        max_tokens: where the cosine ends.
        correct: a sync reward function, or its `package.module:function`, that gives more than 0.5 for a correct completion; where it gives
            None, so does this.
        correct_at_0: of a correct completion, at no tokens.
        correct_at_max: of a correct completion, just below `max_tokens`.
        wrong_at_0: of a wrong completion, at no tokens.
        wrong_at_max: of a wrong completion, just below `max_tokens`.
        too_long: of `max_tokens` and more.
    Raises: `ValueError` for a length that makes no sense and a `correct` that cannot be found.
    Source: Yeo et al. 2025, arXiv:2502.03373, sec. 4.2 (CosFn); their values differ.
    """
    _check_length("max_tokens", max_tokens, least=1)
    function = _found(correct)

    @required
    def cosine_length(*, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        """By correctness and length; None where it is not known whether the completion is correct."""
        known = function(completion_ids=completion_ids, **columns)
        return [value(verdict, len(ids)) for verdict, ids in zip(known, completion_ids, strict=True)]

    def value(verdict: float | None, length: int) -> float | None:
        if verdict is None or math.isnan(verdict):
            return None
        if length >= max_tokens:
            return too_long
        start, end = (correct_at_0, correct_at_max) if verdict > 0.5 else (wrong_at_0, wrong_at_max)
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * length / max_tokens))

    return cosine_length


def _found(correct: str | Callable[..., Any]) -> Callable[..., Any]:
    function: Any = correct
    if isinstance(correct, str):
        module, _, name = correct.rpartition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"correct={correct!r} cannot be found ({error}); give package.module:function") from None
    if inspect.iscoroutinefunction(function) or not callable(function):
        raise ValueError(f"correct={correct!r} is async, or no function; give one that returns its values at once")
    found: Callable[..., Any] = function
    return found


def _check_length(name: str, value: Any, *, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"got {name} {value!r}; it is a number of tokens, at least {least}")
