"""What the environment prefers of a finished group: member m against member m + group_size // 2."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from agentrl.errors import EnvironmentFailure
from agentrl.records import Rollout
from agentrl.rollout.pool import alone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentrl.environment import Episode
    from agentrl.rollout.pool import EnvPool

FAILED = "judge/failed"
"""Counter of a pair's first rollout: the judge raised, hung, or gave something that is no preference."""


class PlayedGroup(tuple[Rollout, ...]):
    """The rollouts of a group, ordered by member, with what a judge preferred."""

    preferences: tuple[float | None, ...]
    """As in `Group.preferences`."""

    def __new__(cls, rollouts: Iterable[Rollout], preferences: tuple[float | None, ...] = ()) -> PlayedGroup:
        """By default of a group that no judge was asked about."""
        group = super().__new__(cls, rollouts)
        group.preferences = preferences
        return group


async def judged_group(rollouts: Sequence[Rollout], episodes: Sequence[Episode], pool: EnvPool) -> PlayedGroup:
    """Ask the environment about every pair, all at once; a pair with an unscorable member is not asked about.

    Args:
        rollouts: ordered by member; with an odd number, the last one has no counterpart.
        episodes: the same, as the environment saw them.
        pool: where each pair gets an environment of its own.
    Returns: the group; a pair that the judge failed on has no preference, and a count in its first rollout.
    """
    half = len(rollouts) // 2
    preferences: list[float | None] = [None] * half
    judged = list(rollouts)

    async def judge(first: int) -> None:
        second = first + half
        try:
            preferences[first] = await _compared(episodes[first], episodes[second], pool)
        except EnvironmentFailure as error:
            # the record has no place for the reason: it goes to the log of the rollout process
            print(f"task {rollouts[first].task.id}, members {first} and {second} have no preference: {error}", file=sys.stderr, flush=True)
            judged[first] = replace(rollouts[first], counters={**rollouts[first].counters, FAILED: 1.0})

    try:
        async with trio.open_nursery() as nursery:
            for first in range(half):
                if rollouts[first].score.scorable and rollouts[first + half].score.scorable:
                    nursery.start_soon(judge, first)
    except BaseExceptionGroup as group:
        raise alone(group) from None
    return PlayedGroup(judged, tuple(preferences))


async def _compared(first: Episode, second: Episode, pool: EnvPool) -> float | None:
    session = await pool.open(first.task)
    try:
        return await session.compare(first, second)
    finally:
        session.close()
