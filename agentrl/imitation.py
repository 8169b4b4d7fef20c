"""Which rollouts of an earlier run are worth imitating: the best of each group, or those with a reward that is good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.records import Group, Rollout


def imitated(group: Group, least: float | None, *, without_truncated: bool) -> tuple[Rollout, ...]:
    """The rollouts of a group that are good enough; none where the group does not say which are.

    Args:
        group: as it was played.
        least: score from which on a rollout is good; None takes the best of a group in which scores differ (best-of-n).
        without_truncated: leave out what was cut off.

    What sampled no token is left out too.
    """
    if least is None:
        scores = {score for score in group.scores if score is not None}
        if len(scores) < 2:
            return ()
        least = max(scores)
    return tuple(one for one in group.rollouts if _passes(one, least, without_truncated=without_truncated))


def _passes(rollout: Rollout, least: float, *, without_truncated: bool) -> bool:
    cut = without_truncated and rollout.ending == "truncated"
    return rollout.score.value is not None and rollout.score.value >= least and rollout.num_sampled > 0 and not cut
