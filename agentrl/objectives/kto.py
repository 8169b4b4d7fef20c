"""KTO: single texts that are good or bad, judged against how far the policy has moved on completions that belong to other prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.paired import NotNegative, Positive
from agentrl.objectives.unpaired import label_metrics, labels_as_credit, with_mismatched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.examples import Example
    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import Credit, GroupSignals


class KTOConfig(ObjectiveConfig):
    """Options of KTO."""

    name: Literal["kto"] = "kto"
    beta: Positive = 0.1
    """How fast a text's value saturates as the policy moves from the reference."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto` judges against the policy's drift on mismatched completions; `apo_zero_unpaired` against nothing, and saves their forward
    passes."""
    desirable_weight: NotNegative = 1.0
    """Of good texts. The paper keeps desirable_weight x good texts between 1 and 4/3 of undesirable_weight x bad ones."""
    undesirable_weight: NotNegative = 1.0
    """Of bad texts."""


def prepared(examples: Sequence[Example], config: KTOConfig) -> Sequence[Example]:
    """The step's examples, each with a mismatched completion where the loss has a baseline."""
    return with_mismatched(examples) if config.loss == "kto" else examples


def judged(groups: Sequence[GroupSignals], config: KTOConfig) -> list[Credit]:
    """Labels, and the baseline of the step: max(0, mean of log(policy / reference) of its mismatched texts), 0 where it has none."""
    drifts = [
        float(np.sum(member.start_logprobs - member.reference_logprobs, dtype=np.float64))
        for group in groups
        for member in group.members[1:]
        if member.start_logprobs is not None and member.reference_logprobs is not None and len(member.start_logprobs)
    ]
    return labels_as_credit(groups, {"drift": max(0.0, float(np.mean(drifts))) if drifts else 0.0})


def prospect_losses(batch: TokenBatch, config: KTOConfig) -> Losses:
    """How far a text's value is from the best: w (1 - sigmoid(beta (h - z))) of a good one, w (1 - sigmoid(beta (z - h))) of a bad one.

    h = log(policy / reference) of the text; z is the step's baseline, without a gradient: it is computed over the whole step from the
    policy as the step begins, on each prompt with the completion of another. `apo_zero_unpaired` has z = 0.

    Args:
        batch: logprobs, reference_logprobs, mean_logits [tokens]; rollout_advantages, 1 for good texts; parts `drift`, `balance`.
        config: beta, weights.

    Returns: loss [rollouts]. Metrics: `kl` (z), `rewards/mean`, `rewards/margins`, and of good and bad texts apart
    `{rewards,logps,logits}/{chosen,rejected}`.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8; apo_zero_unpaired: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7.
    """
    assert batch.reference_logprobs is not None, "texts are measured against a reference"
    ratios = batch.sum_by_rollout(batch.logprobs - batch.reference_logprobs)
    baseline = batch.parts["drift"]
    good = batch.rollout_advantages > 0
    away = config.beta * (ratios - baseline)
    loss = (-away).sigmoid().where(good, away.sigmoid())
    loss = loss * loss.new_full(loss.shape, config.desirable_weight).where(good, config.undesirable_weight)
    metrics, some = label_metrics(batch, config.beta * ratios)
    return Losses(per="rollout", loss=loss, metrics=metrics | {"kl": baseline}, some_metrics=some)


KTO = Objective(
    name="kto",
    config=KTOConfig,
    advantages=judged,
    loss=prospect_losses,
    needs=lambda config: Needs(reference=True, start=config.loss == "kto", mixes_rows=config.loss == "kto", logits=True),
    prepare=prepared,
    data="unpaired",
    formula=(
        "good: w_D (1 - sigmoid(beta (h - z))); bad: w_U (1 - sigmoid(beta (z - h))); mean over texts\n"
        "h = log(policy / reference) of the text; z = max(0, mean of it over the step's prompts with completions of others)\n"
        "apo_zero_unpaired: z = 0"
    ),
    source="Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8; apo_zero_unpaired: arXiv:2408.06266, eq. 7",
    summary="Learns from single texts with a label, as people value gains and losses.",
    paper={"beta": "0.1", "desirable_weight": "1", "undesirable_weight": "1"},
)
