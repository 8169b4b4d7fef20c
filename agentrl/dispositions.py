"""What becomes of a finished group's members: whether its comparison says anything, and what a step did with each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.objectives import Needs
    from agentrl.records import Disposition, Group, Rollout


def has_signal(group: Group, needs: Needs) -> bool:
    """Whether a comparison within the group says anything: two rewards differ, or a judge preferred one of two.

    Rewards are the scores, or also what `needs` says that the objective makes them of.
    """
    scorable = [rollout for rollout in group.rollouts if rollout.score.scorable]
    compared: list[object] = [rollout.score.value for rollout in scorable]
    if needs.by_part:
        compared = [(value, sorted(rollout.score.parts.items())) for value, rollout in zip(compared, scorable, strict=True)]
    if needs.by_turn:
        compared = [(value, rollout.own_rewards) for value, rollout in zip(compared, scorable, strict=True)]
    differ = any(one != compared[0] for one in compared)
    return differ or any(chance not in (None, 0.5) for chance in group.preferences)


def member_dispositions(group: Group, needs: Needs) -> tuple[Disposition, ...]:
    """What a step did with each member: unscorable ones never counted, the rest was trained.

    Where the objective compares the members of a group, equal rewards gave no signal; neither does a rollout with nothing to train.
    """
    signal = needs.group_size < 2 or has_signal(group, needs)
    return tuple(_disposition(rollout, signal=signal) for rollout in group.rollouts)


def all_members(disposition: Disposition, count: int) -> tuple[Disposition, ...]:
    """The same for each of so many."""
    return (disposition,) * count


def _disposition(rollout: Rollout, *, signal: bool) -> Disposition:
    if not rollout.score.scorable:
        return "unscorable"
    return "trained" if signal and rollout.num_sampled else "no_signal"
