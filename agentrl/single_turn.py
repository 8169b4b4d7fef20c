"""An environment of one turn: a dataset, and reward functions of TRL's form or a judge."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.environment import Environment, Episode, Split, finite, shown
from agentrl.errors import EnvironmentFailure
from agentrl.reward_call import ask_all, name_of, weighted

if TYPE_CHECKING:
    from agentrl.records import Score

RewardFunction = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]
"""`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async.

Where several are summed, None leaves one out of a row's sum, as under TRL, and all None are unscorable; None of a function that is marked
by `agentrl.reward_call.required` always is.
"""

JudgeFunction = Callable[..., "Sequence[int] | Awaitable[Sequence[int]]"]
"""`f(prompts, completions) -> list[int]`, sync or async, as the pairwise judges of TRL: `completions` holds a pair a prompt, in the
prompt's own form (text, or messages); 0 says that the pair's first is better, 1 the second, -1 that it cannot tell."""


@dataclass
class SingleTurn(Environment):
    """One prompt, one completion, one or more reward functions, or a judge that compares completions.

    Example: `SingleTurn(train=[{"prompt": "2+3=", "answer": "5"}], eval=[...], rewards=[exact_answer])`.
    """

    train: Sequence[Mapping[str, Any]]
    rewards: Sequence[RewardFunction] = ()
    """May be none where there is a judge, or where nothing is scored; every score is then 0."""
    eval: Sequence[Mapping[str, Any]] = ()
    weights: Sequence[float] | None = None
    """One a reward, finite; all 1 by default."""
    judge: JudgeFunction | None = None
    unscored: bool = False
    """No rewards and no judge, for an objective that reads neither: it learns from a teacher."""
    max_turns: ClassVar[int | None] = 1
    max_tokens: int | None = field(default=None, init=False)
    done: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.rewards and self.judge is None and not self.unscored:
            raise ValueError("SingleTurn needs at least one reward function, or a judge")
        if self.weights is not None and len(self.weights) != len(self.rewards):
            raise ValueError(f"got {len(self.weights)} weights for {len(self.rewards)} rewards; give one weight a reward")
        if not all(map(math.isfinite, self.weights or ())):
            raise ValueError(f"the weights of rewards must be finite, got {list(self.weights or ())}")

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split."""
        return self.train if split == "train" else self.eval

    async def score(self, episode: Episode) -> Score:
        """Call each reward function with lists of one, as TRL does with a batch (`agentrl.reward_call`)."""
        given = {"prompts": [episode.prompt], "completions": [episode.completion], "completion_ids": [episode.completion_ids]}
        verdicts = await ask_all(self.rewards, given, episode.task.row, _one_value)
        return weighted(verdicts, self.weights or [1.0] * len(self.rewards))

    @property
    def compares(self) -> bool:
        """Whether it was given a judge."""
        return self.judge is not None or type(self).compare is not SingleTurn.compare

    async def compare(self, first: Episode, second: Episode) -> float | None:
        """Call the judge with lists of one pair."""
        if self.judge is None:
            raise NotImplementedError("SingleTurn was made without a judge; give it judge=f(prompts, completions) -> list of 0, 1 or -1")
        verdicts = self.judge(prompts=[first.prompt], completions=[[first.completion, second.completion]])
        if inspect.isawaitable(verdicts):
            verdicts = await verdicts
        return _probability(name_of(self.judge), verdicts)


def _probability(name: str, verdicts: Any) -> float | None:
    """That the first is better, of a judge's verdict on one pair."""
    count, allowed = _length(verdicts), "a list with 0 (the first is better), 1 (the second) or -1 (it cannot tell) a pair"
    if count != 1:
        raise EnvironmentFailure(f"judge {name} got 1 pair and returned {_amount(count, verdicts)}; allowed: {allowed}")
    verdict = verdicts[0]
    try:
        # no booleans or floats: True and 1.0 would most likely mean that the first is better
        known = {0: 1.0, 1: 0.0, -1: None}[-2 if isinstance(verdict, bool) else operator.index(verdict)]
    except (TypeError, KeyError):
        raise EnvironmentFailure(f"judge {name} returned {shown(verdict)}; allowed: {allowed}") from None
    return known


def _one_value(name: str, values: Any) -> float | None:
    count = _length(values)
    if count != 1:
        raise EnvironmentFailure(
            f"reward {name} got 1 completion and returned {_amount(count, values)}; "
            "it must return a list with one number (or None) a completion"
        )
    value = values[0]
    return None if value is None else finite(f"reward {name} returned", value, "a finite number a completion, or None where it cannot tell")


def _length(values: Any) -> int:
    """Length of a sequence that users returned; -1 for what is none."""
    sequence = hasattr(values, "__getitem__") and not isinstance(values, str | bytes | Mapping)
    try:
        return len(values) if sequence else -1
    except TypeError:  # an array of no dimension
        return -1


def _amount(count: int, values: Any) -> str:
    return f"{count} values" if count >= 0 else shown(values)
