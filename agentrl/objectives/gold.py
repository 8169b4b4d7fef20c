"""Distillation across vocabularies: a student held against a teacher whose tokenizer is another, piece of text by piece of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs, Teacher, Words
from agentrl.objectives.sft import no_advantages

if TYPE_CHECKING:
    from agentrl.objectives.losses import TokenBatch

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, le=10)]

PIECE = "piece"
"""Column that is 1 at the first token of each piece of text that both vocabularies have an end of."""


class GoldConfig(ObjectiveConfig):
    """Options of GOLD."""

    name: Literal["gold"] = "gold"
    merge: Literal["observed", "bayesian"] = "observed"
    """Of a piece that is several tokens: the distribution of its first token times the chances of the later ones (`observed`), or that of
    its last token times the chances of the earlier ones (`bayesian`)."""
    hybrid: bool = False
    """Compare words that both vocabularies have one by one, and only the others by the rank of their probabilities."""
    beta: Share = 0.5
    """Of words compared one by one: 0 is KL(teacher | student), 1 is KL(student | teacher)."""
    matched_weight: Weight | None = None
    """Of the words that both have; null is their share of the teacher's vocabulary."""
    unmatched_weight: Weight | None = None
    """Of the others; null is what is left to 1."""
    distillation_weight: Weight = 1.0
    """Of the distance from the teacher."""
    crossentropy_weight: Weight = 0.0
    """Of the likelihood of the text itself."""
    student_temperature: Temperature = 1.0
    """Of the student's distribution in the distance."""
    teacher_temperature: Temperature = 1.0
    """Of the teacher's."""
    lmbda: Share = 0.0
    """Share of each step's texts that the policy samples itself, of the prompts of the same dataset; the others are the dataset's. 0 is an
    offline run, 1 learns from the policy's own texts alone."""
    skip_ends: bool = True
    """Leave end tokens out of the distance; the likelihood counts them."""

    @model_validator(mode="after")
    def _consistent(self) -> GoldConfig:
        found = []
        if (self.matched_weight is None) != (self.unmatched_weight is None):
            found.append("matched_weight and unmatched_weight go together: set both, or none of them")
        if not self.hybrid and (self.matched_weight is not None or self.beta != type(self).model_fields["beta"].default):
            found.append("beta, matched_weight and unmatched_weight are of the hybrid form: set hybrid, or remove them")
        if self.distillation_weight == 0 and self.crossentropy_weight == 0:
            found.append("distillation_weight and crossentropy_weight are both 0: nothing would be learned")
        if found:
            raise ValueError("; ".join(found))
        return self


def gold_losses(batch: TokenBatch, config: GoldConfig) -> Losses:
    """The mean distance of each text's pieces from the teacher's, and the mean negative log-likelihood of its tokens.

    Args:
        batch: divergence [tokens], that of a piece at its first token and 0 elsewhere, with gradient; column `piece` [tokens]; logprobs
            [tokens] at temperature 1.
        config: the two weights.

    Returns: loss [rollouts]. Metrics [rollouts]: `distillation`, `nll`; `pieces_per_token`.

    Source: Boizard et al. 2024, arXiv:2402.12030, eq. 3, with pieces aligned by bytes.
    """
    assert batch.divergence is not None, "GOLD asks for a teacher"
    count = batch.sum_by_rollout(batch.columns[PIECE])
    distance = batch.sum_by_rollout(batch.divergence) / count.clamp(min=1)
    likelihood = batch.mean_by_rollout(-batch.logprobs)
    return Losses(
        per="rollout",
        loss=config.distillation_weight * distance + config.crossentropy_weight * likelihood,
        metrics={"distillation": distance.detach(), "nll": likelihood.detach(), "pieces_per_token": count / batch.lengths.clamp(min=1)},
    )


def gold_needs(config: GoldConfig) -> Needs:
    """A teacher that is read in its own words."""
    words = Words(
        merge=config.merge,
        hybrid=config.hybrid,
        beta=config.beta,
        matched_weight=config.matched_weight,
        unmatched_weight=config.unmatched_weight,
        own_temperature=config.student_temperature,
        temperature=config.teacher_temperature,
        skips_ends=config.skip_ends,
    )
    return Needs(rewards=False, temperature=1.0, teacher=Teacher(divergence=config.beta, words=words), own_share=config.lmbda)


GOLD = Objective(
    name="gold",
    config=GoldConfig,
    advantages=no_advantages,
    loss=gold_losses,
    needs=gold_needs,
    data="supervised",
    formula=(
        "distillation_weight D + crossentropy_weight NLL, mean over texts\n"
        "D: mean over pieces of sum over ranks |sorted S - sorted T|, S and T the two distributions of a piece\n"
        "hybrid: matched_weight JSD(words that both have) + unmatched_weight the same of the others alone"
    ),
    source="Boizard et al. 2024, arXiv:2402.12030, eq. 3",
    summary="Brings the policy near a teacher with another tokenizer, on the texts of a dataset or its own.",
    refused=(
        "matched_weight without unmatched_weight, or that without it",
        "beta and the two weights without hybrid: they would have no effect",
        "distillation_weight and crossentropy_weight both 0",
    ),
)
