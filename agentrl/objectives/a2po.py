"""A*-PO: regression of the policy onto the advantage of the optimal, KL-regularized policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class A2POConfig(ObjectiveConfig):
    """Options of A*-PO. The first half of a group is sampled by the policy, the second by the reference."""

    name: Literal["a2po"] = "a2po"
    beta1: Positive = 0.5
    """Temperature of the optimal value: V* = beta1 log mean exp(reward / beta1) over the reference's samples."""
    beta2: Positive = 1e-3
    """Weight of the policy's log-ratio to the reference in the regression."""
    filter_all_incorrect: bool = True
    """Leave out tasks in which no sample of the reference has a reward above 0."""


def optimal_value(rewards: np.ndarray, beta1: float) -> float:
    """beta1 log mean exp(reward / beta1), computed without overflow.

    Source: Brantley et al. 2025, arXiv:2505.20686, stage 1.
    """
    top = float(rewards.max())
    return top + beta1 * math.log(math.fsum(np.exp((rewards - top) / beta1)) / len(rewards))


def optimal_advantages(groups: Sequence[GroupSignals], config: A2POConfig) -> list[Credit]:
    """Reward - V* for the policy's samples; the reference's are not trained, nor is a group without any of them."""
    found = []
    for group in groups:
        rival = np.array([member.rival for member in group.members], dtype=bool)
        reference = group.rewards[rival]
        usable = len(reference) > 0 and not (config.filter_all_incorrect and reference.max() <= 0)
        advantages = group.rewards - optimal_value(reference, config.beta1) if usable else np.zeros(len(rival))
        found.append(Credit(advantages=advantages, trained=~rival & usable))
    return found


def squared_regret(batch: TokenBatch, config: A2POConfig) -> Losses:
    """(beta2 log(policy / reference) - (reward - V*))^2 of each whole rollout.

    A regression has its minimum at the same policy wherever the samples come from, so it needs no importance ratio.

    Returns: loss [rollouts]. Metrics [rollouts], under TRL's names: `implicit_reward`, `advantage`.

    Source: Brantley et al. 2025, arXiv:2505.20686, stage 2.
    """
    assert batch.reference_logprobs is not None, "A*-PO asks for a reference"
    implicit = config.beta2 * batch.sum_by_rollout(batch.logprobs - batch.reference_logprobs)
    loss = (implicit - batch.rollout_advantages).square()
    return Losses(per="rollout", loss=loss, metrics={"implicit_reward": implicit.detach(), "advantage": batch.rollout_advantages})


A2PO = Objective(
    name="a2po",
    config=A2POConfig,
    advantages=optimal_advantages,
    loss=squared_regret,
    needs=lambda config: Needs(reference=True, rival=1.0, group_size=2),
    formula=(
        "(beta2 log(policy / reference) - (reward - V*))^2, of whole rollouts\n"
        "V* = beta1 log mean exp(reward / beta1) over the half of the group that the reference sampled; mean over the policy's rollouts"
    ),
    source="Brantley et al. 2025, arXiv:2505.20686",
    summary="Least squares onto the optimal advantage: the reference's samples give the value, the policy's are trained.",
    paper={"beta1": "0.5", "beta2": "1e-3", "group_size": "8 of the reference, 1 of the policy"},
)
