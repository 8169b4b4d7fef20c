"""The training sums of `arithmetic` in two halves, so that a reward model ranks answers to questions that it was not trained on.

    agentrl eval --env "examples/chain/parts.py:part?of=judged" --model MODEL --samples 8 --output DIR

`agentrl eval` plays the evaluation split of an environment and keeps what it sampled; here that split is a half of the *training* sums, or
less of it, so that the held-out sums of `arithmetic` stay unseen by every stage.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from agentrl.envs.arithmetic import Exercises
from agentrl.errors import ConfigError
from agentrl.rewards.math_answer import math_reward
from agentrl.single_turn import SingleTurn

if TYPE_CHECKING:
    from collections.abc import Mapping

HALVES = ("judged", "ranked")
"""The verifier judges samples of the first, for the reward model; the reward model ranks those of the second, for DPO."""


def training_sums(of: str | None = None) -> list[Mapping[str, Any]]:
    """Rows of `prompt` and `answer`: every second training sum, or all of them."""
    rows = Exercises(digits=2, symbols="+", prompt="What is {task}?", split="train")
    start, step = (0, 1) if of is None else (HALVES.index(of), len(HALVES))
    return [rows.row(index) for index in range(start, len(rows), step)]


def part(of: str, most: int | None = None) -> SingleTurn:
    """One half of the training sums, to sample from.

    Args:
        of: `judged` or `ranked`.
        most: sums; all of the half by default.
    """
    if of not in HALVES:
        raise ConfigError(f"part: of must be {' or '.join(HALVES)}, got {of!r}")
    rows = list(islice(training_sums(of), most))
    return SingleTurn(train=rows, eval=rows, rewards=[math_reward])
