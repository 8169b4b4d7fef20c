"""Reward models of whole answers: a score a text, learned from which of two is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals

PAIR = (0, 1)
"""Places of the chosen and the rejected text of a row."""


class RewardModelConfig(ObjectiveConfig):
    """Options of `reward_model`."""

    name: Literal["reward_model"] = "reward_model"
    center_coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores around 0: the loss alone does not change when all of them move."""


def each_pair(groups: Sequence[GroupSignals], config: ObjectiveConfig) -> list[Credit]:
    """One pair a row, the chosen text first; a row that has lost one of them is no pair."""
    return [Credit(advantages=np.zeros(len(group.rewards)), pairs=[PAIR] if len(group.rewards) > 1 else []) for group in groups]


def bradley_terry(batch: TokenBatch, config: RewardModelConfig) -> Losses:
    """-log sigmoid(chosen - rejected - margin) of each pair's scores, and what keeps them around 0.

    Args:
        batch: outputs [rollouts, 1], a score a text; chosen and rejected [pairs]; parts `margin`, 0 where a row has none.
        config: how much scores are held around 0.

    Returns: loss [pairs]. Metrics [pairs]: `accuracy` (share of pairs in the right order), `margin` (mean of chosen - rejected),
    `mean_reward`; smallest and largest score of the step: `min_reward`, `max_reward`.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2;
    centring: Eisenstein et al. 2023, arXiv:2312.09244, sec. 2.
    """
    import torch

    assert batch.outputs is not None
    assert batch.chosen is not None
    assert batch.rejected is not None
    scores = batch.outputs[:, 0]
    chosen, rejected = scores[batch.chosen], scores[batch.rejected]
    gap = chosen - rejected
    loss = -torch.nn.functional.logsigmoid(gap - _margins(batch, gap))
    if config.center_coefficient:
        loss = loss + config.center_coefficient * (chosen + rejected).square()
    own = scores.detach()
    return Losses(
        per="pair",
        loss=loss,
        metrics={"accuracy": (gap > 0).to(own.dtype), "margin": gap.detach(), "mean_reward": (chosen + rejected).detach() / 2},
        lowest={"min_reward": own},
        highest={"max_reward": own},
    )


def _margins(batch: TokenBatch, gap: torch.Tensor) -> torch.Tensor:
    """[pairs] what chosen has to be ahead by."""
    margins = batch.parts.get("margin")
    return gap.new_zeros(gap.shape) if margins is None else margins[batch.chosen].nan_to_num(nan=0.0)


REWARD_MODEL = Objective(
    name="reward_model",
    config=RewardModelConfig,
    advantages=each_pair,
    loss=bradley_terry,
    needs=lambda config: Needs(pairs=True, output="score"),
    data="preference",
    formula="-log sigmoid(R(chosen) - R(rejected) - margin) + center_coefficient (R(chosen) + R(rejected))^2, mean over pairs",
    reads=("margin",),
    source="arXiv:2203.02155, eq. 1; margin: arXiv:2307.09288, eq. 2; centring: arXiv:2312.09244",
    summary="A reward model of whole answers, from pairs of which one is better.",
)
