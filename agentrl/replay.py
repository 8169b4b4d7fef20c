"""Replay: groups of earlier steps, trained again in the place of those of a step whose rewards are all equal.

A step keeps its size although some of its groups say nothing, and the groups in which rewards differed most are seen more than once. A
replayed group was sampled by an older policy, and nothing here makes up for that: the log-probs of its tokens are those that the engine
recorded when it drew them, so the denominators of the objective's ratio are the policy that really sampled, and its clip, its weights and
its corrections see how far the learner has gone since. The staleness bound is about fresh groups; `replay/age_max` tells that of the
replayed ones, and `replay.max_age` bounds it.

Source: the replay buffer of TRL 1.12's experimental `grpo_with_replay_buffer`: the priority, the places that are filled, and the draw.
There the priority of a whole batch is one number, whatever group it is kept for; here each group has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agentrl.dispositions import has_signal
from agentrl.objectives.advantages import STD_EPS, deviations, sample_std
from agentrl.run_folder import ReplayEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentrl.config import ReplayConfig, RunConfig
    from agentrl.objectives import Needs
    from agentrl.records import Group

STREAM = int.from_bytes(b"replay")
"""Keeps the draws apart from others that a seed and a step give."""

LEAST = 1e-12
"""Share of the highest priority below which a draw does not tell groups apart: a chance that rounds to 0 could not be drawn."""


class Replay:
    """Owned by rank 0's main thread, which decides what a step trains; the other ranks are sent the groups."""

    def __init__(self, config: ReplayConfig, needs: Needs, *, seed: int) -> None:
        self._config = config
        self._needs = needs
        self._seed = seed
        self._kept: dict[int, tuple[ReplayEntry, Group]] = {}
        """By group index."""

    def fill(self, groups: Sequence[Group], step: int) -> tuple[list[Group], dict[str, float]]:
        """What a step trains: its groups, those without a signal replaced as far as there are others; and figures.

        The draw is proportional to the priorities, without replacement within a step, and depends on seed, step and what is kept alone.

        Args:
            groups: fresh ones, in the step's order.
            step: optimizer steps done before this one.
        """
        young = self._young(step + 1)
        empty = [place for place, group in enumerate(groups) if not has_signal(group, self._needs)]
        count = min(len(empty), len(young))
        drawn: list[ReplayEntry] = []
        if count:
            weights = np.array([entry.priority for entry in young])
            chances = np.maximum(weights / weights.max(), LEAST)  # divided first, so that the sum stays finite
            random = np.random.default_rng((self._seed, step, STREAM))
            drawn = [young[at] for at in random.choice(len(young), size=count, replace=False, p=chances / chances.sum())]
        trained = list(groups)
        for place, entry in zip(empty, drawn, strict=False):
            trained[place] = self._kept[entry.index][1]
        ages = [step + 1 - entry.step for entry in drawn]
        return trained, {
            "replay/replaced": float(count),
            "replay/size": float(len(young)),
            "replay/age_mean": float(np.mean(ages)) if ages else 0.0,
            "replay/age_max": float(max(ages, default=0)),
        }

    def take_in(self, groups: Sequence[Group], step: int) -> None:
        """Keep what a step has trained of its own groups, each in the place of the least one that is kept where it ranks above that.

        Args:
            groups: the step's fresh ones.
            step: number of the step, from 1.
        """
        self._kept = {entry.index: self._kept[entry.index] for entry in self._young(step + 1)}
        for group in groups:
            if has_signal(group, self._needs):
                self._offer(ReplayEntry(index=group.index, step=step, priority=priority(group)), group)

    def _young(self, step: int) -> list[ReplayEntry]:
        """Those that step number `step` may train, by group index."""
        oldest = self._config.max_age
        return [self._kept[index][0] for index in sorted(self._kept) if oldest is None or step - self._kept[index][0].step <= oldest]

    def _offer(self, entry: ReplayEntry, group: Group) -> None:
        if entry.priority <= 0:  # a difference too small for a float
            return
        if len(self._kept) >= self._config.size:
            least = min((kept for kept, _ in self._kept.values()), key=_rank)
            if entry.priority <= least.priority:
                return
            del self._kept[least.index]
        self._kept[entry.index] = (entry, group)

    @property
    def entries(self) -> tuple[ReplayEntry, ...]:
        """What a checkpoint keeps, by group index."""
        return tuple(self._kept[index][0] for index in sorted(self._kept))

    def restore(self, entries: Sequence[ReplayEntry], groups: dict[int, Group]) -> None:
        """Take up what a checkpoint kept; the run file may have made `size` smaller since.

        Args:
            entries: of the checkpoint.
            groups: by index, one an entry.
        """
        for entry in entries:
            self._offer(entry, groups[entry.index])


def priority(group: Group) -> float:
    """Sum over members of |A| x the rewards' standard deviation, A = (reward - mean) / deviation; 0 where all rewards are equal."""
    rewards = [score for score in group.scores if score is not None]
    spread = sample_std(rewards)
    return float(np.abs(deviations(rewards) / (spread + STD_EPS)).sum()) * spread


def _rank(entry: ReplayEntry) -> tuple[float, int, int]:
    """The least goes first: of equal ones the oldest."""
    return entry.priority, entry.step, entry.index


def mistakes_of_replay(config: RunConfig, needs: Needs, name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Why a run cannot replay, each with the key that would have to change.

    Pairs are no obstacle: their loss has the same minimum whoever sampled them. Nor are rivals that the reference samples, which stays
    where it is. A rival that is a mixture with the policy is: the older mixture is another opponent than the objective asks for, and no
    ratio weighs it. An objective with a critic compares with the critic's values, so it falls under the first case.

    Args:
        config: the run file.
        needs: of the objective under its options.
        name: of the objective.
    """
    if config.replay is None:
        return
    if needs.group_size < 2:
        yield (
            ("replay",),
            f"`replay` fills the places of groups whose rewards are all equal, and objective {name!r} learns from those too with these "
            "options: remove replay, or take an objective (or objective.baseline) that compares the members of a group",
        )
    if needs.signal:
        yield (
            ("replay",),
            "`replay` and `objective.dynamic_sampling` both fill the places of groups whose rewards are all equal: set "
            "objective.dynamic_sampling=false, or remove replay",
        )
    if needs.judge:
        yield (
            ("replay",),
            f"`replay` ranks groups by their rewards, and objective {name!r} learns from a judge's preferences: remove replay, or set "
            "objective.preferences=reward",
        )
    if needs.rival is not None and (needs.rival < 1 or config.learner.reference_sync is not None):
        yield (
            ("replay",),
            f"`replay` would play against the rivals of earlier steps, and with objective {name!r} the rival changes as the run goes on: "
            "remove replay",
        )
