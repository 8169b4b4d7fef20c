"""From the rewards of a step's groups to advantages: who is compared with whom, in float64, over the whole step.

A reward is shaped first (weights of its parts, soft overlong punishment, the KL to the reference), then compared with a baseline, then
scaled. With a turn discount each turn gets the return from it on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.errors import ConfigError
from agentrl.objectives.advantages import STD_EPS, deviations, leave_one_out, sample_std
from agentrl.objectives.base import Credit
from agentrl.objectives.kl import penalty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.base import GroupSignals, MemberSignals
    from agentrl.objectives.policy import PolicyConfig

Baseline = Literal["group", "leave_one_out", "batch", "running", "none"]
"""What a reward is compared with.

group: the mean of its group, itself included (GRPO, arXiv:2402.03300). leave_one_out: the mean of its siblings (RLOO, arXiv:2402.14740).
batch: the mean of the step (REINFORCE++, arXiv:2501.03262). running: a mean over earlier steps. none: nothing.
"""


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
        sums = [_normalized_sum(group, config) + _shaping(group, config) for group in groups]
        return list(_split(_scaled(deviations(np.concatenate(sums)), np.concatenate(sums)), sums)) if sums else []
    rewards = [shaped_rewards(group, config) for group in groups]
    if config.turn_discount is None:
        return list(_compared(rewards, config))
    returns = [
        [turn_returns(reward, member, config.turn_discount) for reward, member in zip(values, group.members, strict=True)]
        for values, group in zip(rewards, groups, strict=True)
    ]
    whole = [np.array([float(one[0]) for one in group]) for group in returns]
    found: list[np.ndarray | Credit] = []
    for group, later, first, advantages, scale in zip(groups, returns, whole, _centred(whole, config), _scales(whole, config), strict=True):
        # The baseline of a rollout is one number: what earlier turns did does not change it, so it biases no turn.
        baselines = first - advantages
        per_token = [(one - base)[member.turn] / scale for one, base, member in zip(later, baselines, group.members, strict=True)]
        found.append(Credit(advantages=per_token))
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


def shaped_rewards(group: GroupSignals, config: PolicyConfig) -> np.ndarray:
    """[members] float64: weighted parts or the score, soft overlong punishment added, and the KL to the reference taken off."""
    rewards = group.rewards
    if config.reward_weights is not None:
        _check_parts(group, config)
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


def _check_parts(group: GroupSignals, config: PolicyConfig) -> None:
    unknown = sorted(set(config.reward_weights or {}) - set(group.parts))
    if unknown and not any(name in group.parts for name in config.reward_weights or {}):
        raise ConfigError(
            f"objective.reward_weights names {', '.join(unknown)}, and the environment's scores have the parts "
            f"{', '.join(sorted(group.parts)) or '(none)'}"
        )


def _normalized_sum(group: GroupSignals, config: PolicyConfig) -> np.ndarray:
    """[members] the weighted sum of each part's own standing in its group; a member without a part stands at the mean there."""
    weights = config.reward_weights or dict.fromkeys(group.parts, 1.0)
    if not group.parts:
        return _scaled(deviations(group.rewards), group.rewards)
    if config.reward_weights is not None:
        _check_parts(group, config)
    total = np.zeros(len(group.rewards))
    for name, weight in weights.items():
        if name in group.parts:
            part = group.parts[name]
            known = ~np.isnan(part)
            total[known] += weight * _scaled(deviations(part[known]), part[known])
    return total


def _scaled(values: np.ndarray, spread_of: np.ndarray) -> np.ndarray:
    return np.asarray(values / (sample_std(spread_of) + STD_EPS))


def _compared(rewards: Sequence[np.ndarray], config: PolicyConfig) -> list[np.ndarray]:
    return [values / scale for values, scale in zip(_centred(rewards, config), _scales(rewards, config), strict=True)]


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


def _scales(rewards: Sequence[np.ndarray], config: PolicyConfig) -> list[float]:
    if config.scale_rewards == "none" or not rewards:
        return [1.0] * len(rewards)
    if config.scale_rewards == "batch":
        return [sample_std(np.concatenate(rewards)) + STD_EPS] * len(rewards)
    return [sample_std(values) + STD_EPS for values in rewards]


def _split(whole: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    return np.split(whole, np.cumsum([len(values) for values in like])[:-1])
