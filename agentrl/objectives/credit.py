"""From the rewards of a step's groups to advantages: who is compared with whom, in float64, over the whole step.

A reward is shaped first (weights of its parts, soft overlong punishment, the KL to the reference), then compared with a baseline, then
scaled. With a turn discount each turn gets the return from it on.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.errors import ConfigError
from agentrl.objectives.advantages import STD_EPS, deviations, leave_one_out, sample_std, spread
from agentrl.objectives.kl import penalty
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.policy import PolicyConfig
    from agentrl.objectives.signals import GroupSignals, MemberSignals

Baseline = Literal["group", "leave_one_out", "batch", "running", "none"]
"""What a reward is compared with.

group: the mean of its group, itself included (GRPO, arXiv:2402.03300). leave_one_out: the mean of its siblings (RLOO, arXiv:2402.14740).
batch: the mean of the step (REINFORCE++, arXiv:2501.03262). running: a mean over earlier steps. none: nothing.
"""

SCALED = {"group": ("group", "leave_one_out"), "batch": ("group", "leave_one_out", "batch")}
"""Baselines whose differences are 0 wherever the spread of a scale is 0."""


def contradictions(config: PolicyConfig) -> list[str]:
    """What is wrong with how rewards are compared: scales that can be 0 where the differences are not, options without effect."""
    found = []
    if config.reward_aggregation == "normalize_then_sum":
        if config.turn_discount is not None:
            found.append("turn_discount and normalize_then_sum both say how rewards are compared: remove one")
        if (config.baseline, config.scale_rewards) != ("group", "group"):
            found.append("reward_aggregation normalize_then_sum compares parts within groups: set baseline and scale_rewards to group")
    elif config.baseline not in SCALED.get(config.scale_rewards, (config.baseline,)):
        found.append(
            f"scale_rewards {config.scale_rewards} divides by a spread that is 0 where rewards are equal, and with baseline "
            f"{config.baseline} their differences need not be: set scale_rewards to none, or baseline to "
            f"{' or '.join(SCALED[config.scale_rewards])}"
        )
    if config.baseline != "running" and (config.running_decay is not None or config.running_baseline != 0):
        found.append(f"running_baseline and running_decay belong to baseline running, and the baseline is {config.baseline}: remove them")
    return found


def compared_rewards(groups: Sequence[GroupSignals], config: PolicyConfig) -> list[np.ndarray | Credit]:
    """(reward - baseline) / scale, as the options say.

    Args:
        groups: every scorable group of the step; `members` where parts of the options read them.
        config: baseline, scale_rewards, reward weights and aggregation, turn_discount, KL in the reward, overlong punishment.

    Returns: [members] float64 a group, or with `turn_discount` a credit with [trained] a member. Exactly 0 in a group whose rewards are
    all equal where the baseline is the group's or the siblings', and in a group with one scorable member left.

    Sources: Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2 (std with ddof = 1, see `sample_std`); normalize_then_sum: GDPO,
    arXiv:2601.05242.
    """
    if config.reward_aggregation == "normalize_then_sum":
        check_parts(groups, config)
        # Each group's sums have mean 0, and so have the step's: to take that mean off as well would only make equal rewards inexact.
        sums = [_normalized_sum(group, config) + deviations(_shaping(group, config)) for group in groups]
        scale = sample_std(np.concatenate(sums)) + STD_EPS if sums else 1.0
        return [values / scale for values in sums]
    rewards = shaped_rewards(groups, config)
    if config.turn_discount is not None:
        return list(_turn_credits(groups, rewards, config, config.turn_discount))
    scales = _scales([values[:, None] for values in rewards], config)
    return [values / scale for values, scale in zip(_centred(rewards, config), scales, strict=True)]


def _turn_credits(groups: Sequence[GroupSignals], rewards: Sequence[np.ndarray], config: PolicyConfig, discount: float) -> list[Credit]:
    """[trained] a member: the return from the token's turn on, minus the baseline of the whole return, over a scale.

    The baseline of a rollout is one number: what its earlier turns did does not change it, so it biases no turn.
    """
    returns = [
        [turn_returns(reward, member, discount) for reward, member in zip(values, group.members, strict=True)]
        for values, group in zip(rewards, groups, strict=True)
    ]
    whole = [np.array([float(one[0]) for one in group]) for group in returns]
    found = []
    for group, turns, advantages, scale in zip(groups, returns, _centred(whole, config), _scales(returns, config), strict=True):
        per_turn = [(one - one[0] + advantage) / scale for one, advantage in zip(turns, advantages, strict=True)]
        found.append(Credit(advantages=[one[member.turn] for one, member in zip(per_turn, group.members, strict=True)]))
    return found


def turn_returns(reward: float, member: MemberSignals, discount: float) -> np.ndarray:
    """[turns, at least 1] float64: the discounted sum of rewards from each turn on; what the turns did not give came with the last one."""
    rewards = np.array(member.turn_rewards, dtype=np.float64)
    if not len(rewards):
        return np.array([reward])
    rewards[-1] += reward - math.fsum(member.turn_rewards)
    total = 0.0
    for turn in reversed(range(len(rewards))):
        total = rewards[turn] = rewards[turn] + discount * total
    return rewards


def shaped_rewards(groups: Sequence[GroupSignals], config: PolicyConfig) -> list[np.ndarray]:
    """[members] float64 a group: weighted parts or the score, soft overlong punishment added, and the KL to the reference taken off.

    A part that a member does not have counts as 0. Raises `ConfigError` for `reward_weights` that fit no score of the step.
    """
    check_parts(groups, config)
    return [_shaped(group, config) for group in groups]


def check_parts(groups: Sequence[GroupSignals], config: PolicyConfig) -> None:
    """Raise `ConfigError` where `reward_weights` and the step's scores share no part, or a name looks like a slip of the pen.

    A part may be rare, so one that this step lacks is no mistake by itself.
    """
    named = list(config.reward_weights or {})
    known = {name for group in groups for name in group.parts}
    unknown = sorted(set(named) - known)
    near = [close for name in unknown for close in get_close_matches(name, sorted(known - set(named)), n=1)]
    if groups and unknown and (len(unknown) == len(named) or near):
        raise ConfigError(
            f"objective.reward_weights names {', '.join(unknown)}, and the environment's scores have the parts "
            f"{', '.join(sorted(known)) or '(none)'}{f'; did you mean {near[0]!r}?' if near else ''}"
        )


def _shaped(group: GroupSignals, config: PolicyConfig) -> np.ndarray:
    rewards = group.rewards
    if config.reward_weights is not None:
        weighted = [weight * np.nan_to_num(group.parts[name]) for name, weight in config.reward_weights.items() if name in group.parts]
        rewards = np.sum(weighted, axis=0) if weighted else np.zeros(len(rewards))
    return np.asarray(rewards + _shaping(group, config)) if _shapes(config) else rewards


def overlong_punishment(lengths: np.ndarray, longest: int, cache: int) -> np.ndarray:
    """[members] 0 up to `longest - cache` tokens, then falling linearly to -1 at `longest`, and -1 beyond.

    Source: DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.
    """
    return np.asarray(np.clip((longest - cache - lengths) / cache, -1.0, 0.0))


def _shapes(config: PolicyConfig) -> bool:
    return config.overlong_length is not None or (config.beta > 0 and config.kl_in == "reward")


def _shaping(group: GroupSignals, config: PolicyConfig) -> np.ndarray:
    """What is added to the rewards, [members]."""
    added = np.zeros(len(group.rewards))
    if config.overlong_length is not None:
        lengths = np.array([len(member.turn) for member in group.members], dtype=np.float64)
        added += overlong_punishment(lengths, config.overlong_length, config.overlong_cache)
    if config.beta > 0 and config.kl_in == "reward":
        added -= config.beta * _kl_of_members(group, config)
    return added


def _kl_of_members(group: GroupSignals, config: PolicyConfig) -> np.ndarray:
    if config.kl_estimator == "k1" and group.reference_kl is not None:
        return group.reference_kl
    sums = []
    for member in group.members:
        assert member.reference_logprobs is not None, "beta > 0 asks for a reference"
        sums.append(math.fsum(penalty(member.sampler_logprobs, member.reference_logprobs, config.kl_estimator)))
    return np.array(sums)


def _normalized_sum(group: GroupSignals, config: PolicyConfig) -> np.ndarray:
    """[members] the weighted sum of each part's own standing in its group; a member without a part stands at the mean there."""
    if not group.parts and config.reward_weights is None:
        return _scaled(deviations(group.rewards), group.rewards)
    weights = config.reward_weights or dict.fromkeys(group.parts, 1.0)
    total = np.zeros(len(group.rewards))
    for name, weight in weights.items():
        if name in group.parts:
            part = group.parts[name]
            known = ~np.isnan(part)
            total[known] += weight * _scaled(deviations(part[known]), part[known])
    return total


def _scaled(values: np.ndarray, spread_of: np.ndarray) -> np.ndarray:
    return np.asarray(values / (sample_std(spread_of) + STD_EPS))


def _centred(rewards: Sequence[np.ndarray], config: PolicyConfig) -> list[np.ndarray]:
    match config.baseline:
        case "group":
            return [deviations(values) for values in rewards]
        case "leave_one_out":
            return [leave_one_out(values) for values in rewards]
        case "batch":
            return _split(deviations(np.concatenate(rewards)), rewards) if rewards else []
        case "running":
            return [values - config.running_baseline for values in rewards]
        case _:
            return [np.array(values) for values in rewards]


def _scales(turns: Sequence[Sequence[np.ndarray] | np.ndarray], config: PolicyConfig) -> list[float]:
    """What each group's advantages are divided by; `turns` are each member's returns from each of its turns on."""
    match config.scale_rewards:
        case "group":
            return [_spread_of_turns(group) + STD_EPS for group in turns]
        case "batch":
            return [_spread_of_turns([one for group in turns for one in group]) + STD_EPS] * len(turns)
        case _:
            return [1.0] * len(turns)


def _spread_of_turns(turns: Sequence[np.ndarray] | np.ndarray) -> float:
    """Standard deviation of the members, each as far from the mean whole return as the root mean square of its turns.

    Of members with one turn it is the plain one. Turns may differ where the whole returns are all equal, whose own deviation is 0.
    """
    away = deviations([float(one[0]) for one in turns])
    distances = [math.hypot(*(one - one[0] + offset)) / math.sqrt(len(one)) for one, offset in zip(turns, away, strict=True)]
    return spread(np.array(distances))


def _split(whole: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    return np.split(whole, np.cumsum([len(values) for values in like])[:-1])
