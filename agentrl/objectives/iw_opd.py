"""Importance-weighted on-policy distillation: early disagreements with the teacher count more than late ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.corrections import Correction, correct, refusals
from agentrl.objectives.distillation import teacher_gap
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.needs import Needs, Teacher
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals

LEAST = 1e-8
"""Nats of disagreement over a rollout below which its tokens are weighted alike."""


class IWOPDConfig(ObjectiveConfig):
    """Options of IW-OPD."""

    name: Literal["iw_opd"] = "iw_opd"
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """How much more the first token counts than the last one; 0 weighs all alike."""
    normalization: Normalization = "token_mean"
    """How token losses become one number."""
    corrections: list[Correction] = Field(default_factory=list)
    """Corrections for stale or mismatched samplers, such as `[{name: tis, max: 2}]`; see `agentrl objectives show corrections`."""

    @model_validator(mode="after")
    def _consistent(self) -> IWOPDConfig:
        found = refusals(self.corrections, reanchors=True, per_rollout=False, objective=self.name)
        if found:
            raise ValueError("; ".join(found))
        return self


def weighted_gaps(gaps: np.ndarray, gamma: float) -> np.ndarray:
    """[trained] w a of one rollout, a its log(teacher / sampler).

    w_t = 1 + gamma (1 - sum over s < t of |a_s| / sum over all s of |a_s|): what comes after much disagreement counts less, since the
    teacher would not have come there. Source: arXiv:2606.22600, as TRL 1.16's IWOPDTrainer computes it.
    """
    sizes = np.abs(gaps)
    before = np.cumsum(sizes) - sizes
    result: np.ndarray = (1 + gamma * (1 - before / max(float(sizes.sum()), LEAST))) * gaps
    return result


def iw_opd_advantages(groups: Sequence[GroupSignals], config: IWOPDConfig) -> list[Credit]:
    """[trained] a member, float64; rewards are not read."""
    return [Credit(advantages=[weighted_gaps(teacher_gap(member), config.gamma) for member in group.members]) for group in groups]


def iw_opd_losses(batch: TokenBatch, config: IWOPDConfig) -> Losses:
    """-A logp of each token, times what the corrections say.

    Args:
        batch: logprobs, sampler's and teacher's log-probs, advantages [tokens].
        config: corrections.

    Returns: loss [tokens]. Metrics [tokens]: `iw_opd/{mean_advantage,mean_weight}`, `iw_opd/mean_abs_advantage` (of a), `teacher_kl`; of
    all tokens of the step `iw_opd/{min_weight,max_weight}`.
    """
    import torch

    assert batch.teacher_logprobs is not None, "IW-OPD asks for a teacher"
    gaps = batch.teacher_logprobs - batch.sampler_logprobs
    amplified = torch.where(gaps == 0, 1.0, batch.advantages / torch.where(gaps == 0, 1.0, gaps))
    metrics = {
        "iw_opd/mean_advantage": batch.advantages,
        "iw_opd/mean_abs_advantage": gaps.abs(),
        "iw_opd/mean_weight": amplified,
        "teacher_kl": -gaps,
    }
    bounds = {"lowest": {"iw_opd/min_weight": amplified}, "highest": {"iw_opd/max_weight": amplified}}
    loss, weights = -batch.advantages * batch.logprobs, None
    if config.corrections:
        weights, struck = correct(batch, config.corrections)
        loss, metrics = loss * weights, metrics | struck
    return Losses(per="token", loss=loss, metrics=metrics, weights=weights, **bounds)


IW_OPD = Objective(
    name="iw_opd",
    config=IWOPDConfig,
    advantages=iw_opd_advantages,
    loss=iw_opd_losses,
    needs=lambda config: Needs(teacher=Teacher(logprobs=True), rewards=False),
    normalization=lambda config: config.normalization,
    formula=(
        "-sg(w_t a_t) log policy, a = log(teacher / sampler) of each sampled token\n"
        "w_t = 1 + gamma (1 - sum of |a| before t / sum of |a| of the rollout); mean over all tokens of the step"
    ),
    source="On the Position Bias of On-Policy Distillation, arXiv:2606.22600, as TRL 1.16 computes it",
    summary="On-policy distillation by sampled tokens in which early disagreements with the teacher count more.",
    refused=("two corrections that weigh by start / sampler: it would count twice",),
)
