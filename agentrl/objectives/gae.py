"""Generalized advantage estimation over the sampled tokens of an episode (Schulman et al. 2016, arXiv:1506.02438)."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from agentrl.objectives.advantages import sample_std
from agentrl.objectives.credit import shaped_rewards
from agentrl.objectives.kl import penalty
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.ppo import PPOConfig
    from agentrl.objectives.signals import GroupSignals, MemberSignals

WHITEN_EPS = 1e-8
"""Added to the variance, as TRL does."""


def gae(rewards: np.ndarray, values: np.ndarray, *, discount: float, decay: float) -> np.ndarray:
    """Advantages of one episode, [tokens] float64.

    Args:
        rewards: [tokens], each given after its token.
        values: [tokens] of the state before each token; the state after the last one is worth 0.
        discount: gamma.
        decay: lambda.

    A_t = sum over l of (discount * decay)^l * delta_{t+l}, delta_t = reward_t + discount * value_{t+1} - value_t (eq. 16).
    """
    if not len(rewards):
        return np.zeros(0)
    following = np.append(values[1:], 0.0)
    deltas = rewards + discount * following - values
    backwards = accumulate(deltas[::-1].tolist(), lambda later, delta: delta + discount * decay * later)
    return np.array(list(backwards))[::-1]


def whiten(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All values of the step shifted to mean 0 and scaled to variance 1 (ddof = 1)."""
    whole = np.concatenate(values) if values else np.zeros(0)
    if len(whole) < 2:
        return list(values)
    away = whole - math.fsum(whole) / len(whole)
    scaled = away / math.hypot(sample_std(whole), math.sqrt(WHITEN_EPS))
    return np.split(scaled, np.cumsum([len(one) for one in values])[:-1])


def token_rewards(reward: float, member: MemberSignals, order: np.ndarray, config: PPOConfig) -> np.ndarray:
    """[trained] float64, in `order`: what each turn gave at its last token, the rest at the last, and -beta * KL at each.

    What came in a turn without a token of its own goes to the last token before it, or to the first of all.
    """
    rewards = np.zeros(len(order))
    if config.beta > 0 and config.kl_in == "reward":
        assert member.reference_logprobs is not None, "beta > 0 asks for a reference"
        rewards -= config.beta * penalty(member.sampler_logprobs, member.reference_logprobs, config.kl_estimator)[order]
    turns = member.turn[order]
    for index in np.flatnonzero(member.turn_rewards):
        rewards[max(0, int(np.searchsorted(turns, index, side="right")) - 1)] += member.turn_rewards[index]
    rewards[-1] += reward - math.fsum(member.turn_rewards)
    return rewards


def critic_advantages(groups: Sequence[GroupSignals], config: PPOConfig) -> list[Credit]:
    """GAE of every rollout, whitened over the step, and the returns that the critic is to predict.

    Args:
        groups: every scorable group, with the critic's values in `members`.
        config: discount, gae_lambda, beta, whiten.

    Returns: credits with [trained] advantages and returns; returns = advantages before whitening + values.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16; whitening as in Huang et al. 2024, arXiv:2403.17031, detail 13.
    """
    bare = config.model_copy(update={"kl_in": "loss"})  # the KL goes to the tokens here
    advantages: list[np.ndarray] = []
    returns: list[np.ndarray] = []
    for group, rewards in zip(groups, shaped_rewards(groups, bare), strict=True):
        for reward, member in zip(rewards, group.members, strict=True):
            if not len(member.turn):
                advantages.append(np.zeros(0))
                returns.append(np.zeros(0))
                continue
            assert member.values is not None, "GAE asks for a critic"
            order = np.argsort(member.turn, kind="stable")  # rows of a forked rollout are not in the order of time
            values = member.values.astype(np.float64)[order]
            found = gae(token_rewards(float(reward), member, order, config), values, discount=config.discount, decay=config.gae_lambda)
            in_place = np.empty(len(order))
            in_place[order] = found
            advantages.append(in_place)
            returns.append(in_place + member.values)
    shown = whiten(advantages) if config.whiten else advantages
    ends = np.cumsum([len(group.rewards) for group in groups])
    return [
        Credit(advantages=shown[end - len(group.rewards) : end], returns=returns[end - len(group.rewards) : end])
        for group, end in zip(groups, ends.tolist(), strict=True)
    ]
