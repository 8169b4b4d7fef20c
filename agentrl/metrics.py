"""What a step's groups say in numbers: names that users of TRL know where the field has one."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.records import Group, Rollout


def group_metrics(groups: Sequence[Group], *, step: int) -> dict[str, float]:
    """Rewards, lengths, endings and staleness of the groups that a step trains.

    Args:
        groups: the step's groups.
        step: optimizer steps done before this one.

    Unscorable rollouts are outside every reward statistic; staleness counts optimizer steps from a rollout's oldest sampled token. Where a
    rival sampled a part of each group, all figures are of the policy's own rollouts, and `rival/reward_mean` is the rival's.
    """
    played, groups = groups, [replace(group, rollouts=tuple(one for one in group.rollouts if not is_rival(one))) for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = np.array([rollout.num_sampled for rollout in rollouts], dtype=np.float64)
    staleness = np.array([step - rollout.oldest_step(step) for rollout in rollouts], dtype=np.float64)
    endings = Counter(rollout.ending for rollout in rollouts)
    metrics = {
        **_reward_metrics(groups),
        "staleness/mean": float(staleness.mean()),
        "staleness/max": float(staleness.max()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        **_terminated_lengths(lengths, [rollout.ending for rollout in rollouts]),
        "completions/clipped_ratio": endings["truncated"] / len(rollouts),
        "rollout/turns": float(np.mean([len(rollout.own_turns) for rollout in rollouts])),
        "rollout/sampled_tokens": float(lengths.sum()),
    }
    rivals = [rollout.score.value for group in played for rollout in group.rollouts if is_rival(rollout)]
    known = [value for value in rivals if value is not None]
    if known:
        metrics["rival/reward_mean"] = float(np.mean(known))
    for ending in ("timeout", "environment_error", "cancelled"):
        metrics[f"rollout/{ending}"] = float(endings[ending])
    metrics |= _counter_means(rollouts)
    return metrics


def _terminated_lengths(lengths: np.ndarray, endings: Sequence[str]) -> dict[str, float]:
    """Of the rollouts that ended by themselves and not by a budget; 0 where there are none, as TRL has it."""
    ended = lengths[[ending != "truncated" for ending in endings]]
    figures = {"mean": ended.mean(), "min": ended.min(), "max": ended.max()} if len(ended) else dict.fromkeys(("mean", "min", "max"), 0.0)
    return {f"completions/{name}_terminated_length": float(value) for name, value in figures.items()}


def is_rival(rollout: Rollout) -> bool:
    """Whether the reference had a share in sampling it."""
    return any(turn.contract.reference_share > 0 for turn in rollout.own_turns)


def _reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    values = [np.array([score for score in group.scores if score is not None], dtype=np.float64) for group in groups]
    known = np.concatenate(values)
    num_rollouts = sum(len(group.rollouts) for group in groups)
    metrics = {
        "reward/mean": float(known.mean()) if len(known) else float("nan"),
        "reward/std": float(np.mean([one.std() for one in values if len(one)])) if len(known) else float("nan"),
        "reward/frac_zero_std": float(np.mean([len(one) < 2 or bool((one == one[0]).all()) for one in values])),
        "rollout/unscorable": float(num_rollouts - len(known)),
    }
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for group in groups:
        for rollout in group.rollouts:
            if rollout.score.scorable:
                for name, part in rollout.score.parts.items():
                    parts[name].append(part)
    for name, column in parts.items():
        metrics[f"rewards/{name}/mean"] = float(np.mean(column))
        metrics[f"rewards/{name}/std"] = float(np.std(column))
    return metrics | _detail_means(groups)


def _detail_means(groups: Sequence[Group]) -> dict[str, float]:
    """Means of what scores say beside their value, over the rollouts that say it."""
    details: defaultdict[str, list[float]] = defaultdict(list)
    for group in groups:
        for rollout in group.rollouts:
            for name, detail in rollout.score.details.items():
                details[name].append(detail)
    return {f"details/{name}": float(np.mean(column)) for name, column in details.items()}


def _counter_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for rollout in rollouts:
        totals.update(rollout.counters)
    return {name: total / len(rollouts) for name, total in sorted(totals.items())}


def why_idle(steps: Sequence[Mapping[str, float]]) -> str:
    """What kept steps without an update from learning, and what to change."""
    last = steps[-1]
    if last.get("mask/left_out"):
        count = f"{last['mask/left_out']:.0f} rollouts in the last step"
        return f"the objective left out what says too little, {count} (objective.filter_empty)"
    if any(metrics["reward/frac_zero_std"] < 1 for metrics in steps):
        return "every episode that differed from its group was truncated, and learner.mask_truncated is set; raise sampling.max_tokens"
    cut = f"; {last['completions/clipped_ratio']:.0%} of the episodes were truncated, so maybe raise sampling.max_tokens"
    return (
        f"in every group all rewards were equal (reward/mean {last['reward/mean']:.3g} in the last step), and only differences teach; make "
        "the tasks easier or harder for this model, let the reward tell more outcomes apart, or raise group_size"
        + (cut if last["completions/clipped_ratio"] > 0 else "")
    )
