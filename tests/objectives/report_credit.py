"""Advantages by the papers' own definitions, in plain numpy: nothing here calls agentrl.

Each function takes a step and gives [tokens] advantages for each of its rollouts, in order. A standard deviation is that of a sample
(ddof = 1) with 1e-4 added before a division, as TRL has it; the papers leave both open or divide by the bare deviation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from report_ours import Play, Step

    Advantages = Callable[[Step], list[np.ndarray]]
    Reward = Callable[[Play], float]

EPS = 1e-4


def score(play: Play) -> float:
    return play.reward


def less_kl(beta: float, estimate: Callable[[float], float] = lambda gap: gap) -> Reward:
    """R - beta sum over tokens of an estimate of log(sampler / reference); k1 by default (RLOO, arXiv:2402.14740)."""
    return lambda play: play.reward - beta * sum(estimate(gap) for gap in play.sampler - play.reference)


def overlong(longest: int, cache: int) -> Reward:
    """DAPO, arXiv:2503.14476, eq. 13."""

    def punished(play: Play) -> float:
        length = len(play)
        if length <= longest - cache:
            return play.reward
        return play.reward + (((longest - cache) - length) / cache if length <= longest else -1.0)

    return punished


def spread(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def compared(baseline: str = "group", scale: str = "group", reward: Reward = score, constant: float = 0.0) -> Advantages:
    """(R - baseline) / scale.

    baseline: `group` (GRPO, arXiv:2402.03300, sec. 4.1.2), `siblings` (RLOO, arXiv:2402.14740), `batch` (REINFORCE++,
    arXiv:2501.03262), `constant`. scale: `group` (GRPO), `batch` (arXiv:2508.08221), `none` (Dr.GRPO, arXiv:2503.20783).
    """

    def advantages(step: Step) -> list[np.ndarray]:
        everything = [reward(play) for group in step for play in group]
        found = []
        for group in step:
            rewards = [reward(play) for play in group]
            size = 1.0 if scale == "none" else spread(rewards if scale == "group" else everything) + EPS
            for index, own in enumerate(rewards):
                others = rewards[:index] + rewards[index + 1 :]
                base = {
                    "group": sum(rewards) / len(rewards),
                    "siblings": sum(others) / len(others),
                    "batch": sum(everything) / len(everything),
                    "constant": constant,
                }[baseline]
                found.append(np.full(len(group[index]), (own - base) / size))
        return found

    return advantages


def beta_normalized(low: float = 0.0, high: float = 1.0) -> Advantages:
    """BNPO, arXiv:2506.02864: (R - p) / Beta(p; alpha, beta), alpha = 1 + a / 3, beta = 1 + b / 3, a and b by the method of moments."""

    def advantages(step: Step) -> list[np.ndarray]:
        unit = [[(play.reward - low) / (high - low) for play in group] for group in step]
        means = [sum(rewards) / len(rewards) for rewards in unit]
        alpha, beta = 1.0, 1.0
        if len(means) > 1 and max(means) > min(means):
            mean, variance = sum(means) / len(means), spread(means) ** 2
            a = (mean * (1 - mean) / variance - 1) * mean
            b = (mean * (1 - mean) / variance - 1) * (1 - mean)
            alpha, beta = max(1.0, 1 + a / 3), max(1.0, 1 + b / 3)
        constant = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
        found = []
        for group, rewards, p in zip(step, unit, means, strict=True):
            # Bounded as in the authors' code, changyi7231/BNPO: 1 / density is at most 1e6.
            log_inverse = (1 - alpha) * math.log(p) + (1 - beta) * math.log(1 - p) - constant if 0 < p < 1 else -math.inf
            inverse = 1e6 if log_inverse > 50 else min(1e6, math.exp(log_inverse))
            found += [np.full(len(play), (own - p) * inverse) for play, own in zip(group, rewards, strict=True)]
        return found

    return advantages


def normalized_then_summed(weights: dict[str, float]) -> Advantages:
    """GDPO, arXiv:2601.05242, eq. 4 to 6: each reward's own standing in its group, summed, then normalized over the batch."""

    def advantages(step: Step) -> list[np.ndarray]:
        sums = []
        for group in step:
            totals = [0.0] * len(group)
            for name, weight in weights.items():
                known = [index for index, play in enumerate(group) if name in play.parts]
                values = [group[index].parts[name] for index in known]
                if len(values) > 1:
                    mean, size = sum(values) / len(values), spread(values) + EPS
                    for index, value in zip(known, values, strict=True):
                        totals[index] += weight * (value - mean) / size
            sums += totals
        mean, size = sum(sums) / len(sums), spread(sums) + EPS
        plays = [play for group in step for play in group]
        return [np.full(len(play), (total - mean) / size) for play, total in zip(plays, sums, strict=True)]

    return advantages


def by_turn(discount: float, scale: str) -> Advantages:
    """The return from each turn on, against the mean of the group's whole returns; what no turn gave comes with the last turn.

    The spread is that of the members, each as far from the mean as the root mean square of its turns: agentrl's own definition.
    """

    def advantages(step: Step) -> list[np.ndarray]:
        found = []
        for group in step:
            returns = []
            for play in group:
                rewards = list(play.turn_rewards) or [0.0]
                rewards[-1] += play.reward - sum(play.turn_rewards)
                returns.append([sum(discount ** (u - t) * rewards[u] for u in range(t, len(rewards))) for t in range(len(rewards))])
            wholes = [one[0] for one in returns]
            base = sum(wholes) / len(wholes)
            squares = [sum((value - base) ** 2 for value in one) / len(one) for one in returns]
            size = math.sqrt(sum(squares) / (len(squares) - 1)) + EPS if scale == "group" else 1.0
            for play, later in zip(group, returns, strict=True):
                turns = play.turn if play.turn is not None else np.zeros(len(play), dtype=int)
                found.append(np.array([(later[turn] - base) / size for turn in turns]))
        return found

    return advantages


def generalized(
    discount: float, decay: float, *, beta: float = 0.0, estimate: Callable[[float], float] = lambda gap: gap
) -> Callable[[Step], list[np.ndarray]]:
    """GAE, arXiv:1506.02438, eq. 16, on the values that the step began with; a turn's reward comes with its last token, and the KL is
    taken off each."""

    def advantages(step: Step) -> list[np.ndarray]:
        found = []
        for play in (play for group in step for play in group):
            rewards = np.zeros(len(play))
            if beta:
                rewards -= beta * np.array([estimate(gap) for gap in play.sampler - play.reference])
            for turn, own in enumerate(play.turn_rewards):
                rewards[max(t for t in range(len(play)) if play.turn[t] == turn)] += own
            rewards[-1] += play.reward - sum(play.turn_rewards)
            following = [*play.start_values[1:], 0.0]
            deltas = [reward + discount * after - value for reward, after, value in zip(rewards, following, play.start_values, strict=True)]
            count = len(deltas)
            found.append(np.array([sum((discount * decay) ** (u - t) * deltas[u] for u in range(t, count)) for t in range(count)]))
        return found

    return advantages


def whitened(advantages: Advantages) -> Advantages:
    """Mean 0 and variance 1 over the tokens of the step; 1e-8 is added to the variance, as TRL's PPO does."""

    def scaled(step: Step) -> list[np.ndarray]:
        rows = advantages(step)
        whole = [value for row in rows for value in row]
        mean, size = sum(whole) / len(whole), math.sqrt(spread(whole) ** 2 + 1e-8)
        return [(row - mean) / size for row in rows]

    return scaled
