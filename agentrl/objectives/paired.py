"""What the objectives over a dataset's pairs share: who is compared with whom, smoothed labels, and the metrics of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]
"""The chance that a pair's label is wrong."""


def rows_as_pairs(groups: Sequence[GroupSignals], config: Any) -> list[Credit]:
    """Each row's chosen text with its rejected one."""
    return [Credit(advantages=np.zeros(len(group.rewards)), pairs=[(0, 1)]) for group in groups]


def of_pairs(batch: TokenBatch, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rollouts] -> [pairs] of the chosen texts, and of the rejected ones."""
    assert batch.chosen is not None, "there are no pairs"
    assert batch.rejected is not None, "there are no pairs"
    return values[batch.chosen], values[batch.rejected]


def smoothed(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """-(1 - e) log sigmoid(x) - e log sigmoid(-x): the loss of a label that is wrong with chance e.

    Source: Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", eq. 3.
    """
    from torch.nn.functional import softplus

    loss = softplus(-logits)
    return loss if smoothing == 0 else (1 - smoothing) * loss + smoothing * softplus(logits)


def where_in(batch: TokenBatch, values: torch.Tensor, rollouts: torch.Tensor) -> torch.Tensor:
    """[tokens] of some rollouts, NaN elsewhere, for `Losses.some_metrics`."""
    inside = batch.rollout.new_zeros(batch.num_rollouts, dtype=rollouts.dtype).bool()
    inside[rollouts] = True
    return values.detach().where(inside[batch.rollout], float("nan"))


def reward_metrics(chosen: torch.Tensor, rejected: torch.Tensor, logps: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """[pairs] `rewards/{chosen,rejected,margins,accuracies}` and `logps/{chosen,rejected}`.

    Args:
        chosen: [pairs] implicit rewards, beta included.
        rejected: [pairs] the same of the rejected texts.
        logps: [pairs] log-probs of both, as the loss reads them.
    """
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps[0].detach(),
        "logps/rejected": logps[1].detach(),
    }


def token_metrics(batch: TokenBatch, *, nll: bool = False) -> dict[str, torch.Tensor]:
    """[tokens] `logits/{chosen,rejected}`, and of chosen texts `mean_token_accuracy` and, if asked for, `nll_loss`; NaN elsewhere."""
    assert batch.chosen is not None, "there are no pairs"
    assert batch.rejected is not None, "there are no pairs"
    found: dict[str, torch.Tensor] = {}
    if batch.mean_logits is not None:
        found["logits/chosen"] = where_in(batch, batch.mean_logits, batch.chosen)
        found["logits/rejected"] = where_in(batch, batch.mean_logits, batch.rejected)
    if batch.correct is not None:
        found["mean_token_accuracy"] = where_in(batch, batch.correct.to(batch.logprobs.dtype), batch.chosen)
    if nll:
        found["nll_loss"] = where_in(batch, -batch.logprobs, batch.chosen)
    return found
