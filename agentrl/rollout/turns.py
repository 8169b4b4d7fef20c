"""Turns as an episode records them: the tokens of one call, the reward that came after it, and the return of them all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import EnvironmentFailure, SamplerUnavailable
from agentrl.records import SamplingContract, Score, Source, TokenSpan, Turn, VersionRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.engines.protocol import Completion

TURNS, END = "turns", "end"
"""Parts of a score: the rewards of all turns, and what the end alone scored where that had no parts."""


def sampled_turn(
    parent: int, given: np.ndarray, source: Source, completion: Completion, contract: SamplingContract, *, trained: bool = True
) -> Turn:
    """The record of one call: what was new to the context, then what was sampled, ids untouched."""
    shift, count = len(given), len(completion.ids)
    runs = [VersionRun(version=run.version, start=run.start + shift, end=run.end + shift) for run in completion.versions]
    try:
        span = TokenSpan(
            ids=np.concatenate([given, completion.ids]),
            source=np.concatenate([np.full(shift, source, dtype=np.uint8), np.full(count, Source.SAMPLED, dtype=np.uint8)]),
            logprobs=np.concatenate([np.full(shift, np.nan, dtype=np.float32), completion.logprobs]),
            versions=tuple(runs),
        )
    except ValueError as error:
        raise SamplerUnavailable(f"the engine gave a completion that cannot be trained on: {error}") from error
    return Turn(parent=parent, span=span, contract=contract, finish_reason=completion.finish_reason, trained=trained)


def rewarded(turn: Turn, reward: float) -> Turn:
    """The turn with a further reward. Raises `EnvironmentFailure` where the sum is too large for a float."""
    return replace(turn, reward=_added(turn.reward, reward, "the rewards of a turn")) if reward else turn


def whole_return(score: Score, turns: Sequence[Turn]) -> Score:
    """The score of an episode with the rewards of its turns.

    Args:
        score: what the environment scored at the end; an unscorable one stays as it is.
        turns: of the whole episode.
    Raises: `EnvironmentFailure` where the sum is too large for a float, or the score has a part of the name that is needed here.
    """
    if score.value is None or not any(turn.reward for turn in turns):
        return score
    if TURNS in score.parts:
        raise EnvironmentFailure(f"score gave a part {TURNS!r}, which is the name for the sum of the turns' rewards; give it another name")
    total = 0.0
    for turn in turns:
        total = _added(total, turn.reward, "the rewards of an episode's turns")
    value = _added(score.value, total, "a score and the rewards of the episode's turns")
    return replace(score, value=value, parts={**(score.parts or {END: score.value}), TURNS: total})


def _added(one: float, other: float, what: str) -> float:
    total = one + other
    if not math.isfinite(total):
        raise EnvironmentFailure(f"{what} add up to {total} ({one:g} and {other:g}); allowed: a finite number")
    return total
