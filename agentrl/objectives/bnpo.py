"""BNPO: rewards normalized by a Beta distribution that is fitted to the pass rates of the step's tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.errors import ConfigError
from agentrl.objectives.advantages import STD_EPS, deviations, sample_std
from agentrl.objectives.credit import shaped_rewards
from agentrl.objectives.grpo import CLIPPED, ClipConfig, clipped_tokens
from agentrl.objectives.policy import policy_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.signals import Credit, GroupSignals

MOST = 1e6
"""Largest factor of a deviation: the density vanishes where nearly all or nearly no rollout of a task succeeds."""


class BNPOConfig(ClipConfig):
    """Options of BNPO. Rewards must lie between `reward_min` and `reward_max`; it was made for binary ones."""

    refuses: ClassVar[tuple[str, ...]] = (*ClipConfig.refuses, "reward_min at or above reward_max: no reward would be in range")
    name: Literal["bnpo"] = "bnpo"
    scale_rewards: Literal["none"] = "none"
    """The Beta density takes the place of a spread."""
    baseline: Literal["group"] = "group"
    reward_aggregation: Literal["sum_then_normalize"] = "sum_then_normalize"
    turn_discount: None = None
    """BNPO compares whole rollouts."""
    reward_min: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """The least that a reward can be; it counts as 0."""
    reward_max: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """The most that a reward can be; it counts as 1."""

    @model_validator(mode="after")
    def _in_order(self) -> BNPOConfig:
        if self.reward_min >= self.reward_max:
            raise ValueError(f"reward_min={self.reward_min} must be below reward_max={self.reward_max}")
        return self


def beta_normalized(groups: Sequence[GroupSignals], config: BNPOConfig) -> list[np.ndarray | Credit]:
    """(reward - p) / f(p; alpha, beta), p the mean reward of the group, f the density of a Beta distribution.

    alpha = 1 + a / 3 and beta = 1 + b / 3, which minimize the gradient's variance; a and b by the method of moments from the p of the
    step's groups. With one group, or groups of equal p, alpha = beta = 1, and this is the plain difference from the mean.

    Args:
        groups: every scorable group of the step.
        config: the rewards' range.

    Returns: [members] float64 a group, exactly 0 where all rewards are equal. Raises `ConfigError` for a reward outside the range.

    Source: Xiao et al. 2025, arXiv:2506.02864, eq. 8 to 12.
    """
    width = config.reward_max - config.reward_min
    unit = [(rewards - config.reward_min) / width for rewards in shaped_rewards(groups, config)]
    for rewards in unit:
        if len(rewards) and not (rewards.min() >= 0 and rewards.max() <= 1):
            low, high = rewards.min() * width + config.reward_min, rewards.max() * width + config.reward_min
            raise ConfigError(
                f"bnpo fits a Beta distribution to rewards between reward_min={config.reward_min:g} and reward_max={config.reward_max:g}, "
                f"and a group has rewards from {low:g} to {high:g}; set objective.reward_min and objective.reward_max"
            )
    means = np.array([math.fsum(rewards) / len(rewards) for rewards in unit])
    alpha, beta = fitted(means)
    return [deviations(rewards) * _factor(float(mean), alpha, beta) for rewards, mean in zip(unit, means, strict=True)]


def fitted(means: np.ndarray) -> tuple[float, float]:
    """Alpha and beta of the normalizing density; (1, 1), a flat one, where the means have no spread that a Beta distribution has.

    Nor where it is below `STD_EPS`: that is no more than rounding, and gives densities of which rounding leaves nothing.
    """
    if len(means) < 2:
        return 1.0, 1.0
    mean, variance = math.fsum(means) / len(means), sample_std(means) ** 2
    if variance <= STD_EPS**2 or not 0 < mean < 1:
        return 1.0, 1.0
    total = mean * (1 - mean) / variance - 1
    return max(1.0, 1 + total * mean / 3), max(1.0, 1 + total * (1 - mean) / 3)


def _factor(mean: float, alpha: float, beta: float) -> float:
    """1 / density at the mean, at most `MOST`."""
    if not 0 < mean < 1:
        return 0.0  # all rewards are at one end: there is no deviation either
    log_density = (
        (alpha - 1) * math.log(mean) + (beta - 1) * math.log1p(-mean) + math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    )
    return min(MOST, math.exp(min(50.0, -log_density)))


BNPO = policy_objective(
    "bnpo",
    BNPOConfig,
    clipped_tokens,
    advantages=beta_normalized,
    formula=(
        f"{CLIPPED}\n"
        "A = (reward - p) / Beta(p; 1 + a / 3, 1 + b / 3), p = mean of the group, (a, b) fitted to the step's p\n"
        "mean over rollouts of token means"
    ),
    source="Xiao et al. 2025, arXiv:2506.02864; not TRL's loss_type of that name, which is GRPO with a token mean",
    summary="Binary rewards normalized by a Beta distribution that follows the step's pass rates.",
)
