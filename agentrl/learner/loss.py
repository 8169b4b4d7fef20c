"""The loss of one micro-batch: pack, forward pass, the objective's own losses, and the weights that make them parts of the step's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentrl.learner.batch import token_batch
from agentrl.learner.packing import pack
from agentrl.learner.samples import FILLER
from agentrl.objectives.losses import Term

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from agentrl.learner.batch import Part, Weighted
    from agentrl.learner.metrics import StepMetrics
    from agentrl.learner.model import Scores
    from agentrl.learner.models import Models
    from agentrl.learner.noise import Noise
    from agentrl.learner.teacher import Teachers
    from agentrl.objectives.base import Objective, ObjectiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchLoss:
    """Computes micro-batches of one optimizer step; several threads may call it at once."""

    models: Models
    objective: Objective
    options: ObjectiveConfig
    """As they are in force in this step."""
    part: Part
    step: int
    device: torch.device
    ragged: bool
    teachers: Teachers | None = None
    """Those that the objective asks."""
    noise: Noise | None = None
    """What is added to embeddings; None in an evaluation."""

    def __call__(self, units: Sequence[Sequence[Weighted]], metrics: StepMetrics) -> torch.Tensor:
        """The micro-batch's part of the step's loss, a scalar with a graph; 0 for no units, which keep a rank in step with the others."""
        active = [one for unit in units for one in unit]
        with metrics.timing("prepare"):
            samples = [one.sample for one in active] or [FILLER]
            packed = pack(samples, self.device, ragged=self.ragged)
            if self.noise is not None:
                packed = replace(packed, noise=self.noise.of_pack(samples, packed))
        lessons = None
        if self.teachers is not None:
            with metrics.timing("teacher"):
                lessons = self.teachers.lessons([one.sample for one in active], packed, ragged=self.ragged)
        with metrics.timing("forward"):
            scores = self.models.forward(packed, lessons)
            loss = self._loss(units, scores, metrics) if units else _nothing(scores)
        metrics.count(
            tokens=sum(one.sample.num_tokens for one in active),
            computed_tokens=len(packed.ids) if units else 0,
            trained_tokens=sum(one.sample.num_trained for one in active),
            micro_batches=float(bool(units)),
        )
        return loss

    def _loss(self, units: Sequence[Sequence[Weighted]], scores: Scores, metrics: StepMetrics) -> torch.Tensor:
        with metrics.timing("objective"):
            batch, weights = token_batch(units, self.part, scores, step=self.step)
            losses = self.objective.loss(batch, self.options)
            policy = (losses.loss * weights[losses.per]).sum()
            terms = {name: weighted(term, weights) for name, term in losses.terms.items()}
            loss = sum(terms.values(), policy)
            parts = {"loss": loss} | ({"policy_loss": policy} | {f"loss/{name}": term for name, term in terms.items()} if terms else {})
            metrics.add(batch, losses, parts, scores.entropy)
        return loss


def weighted(term: torch.Tensor | Term, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A term's part of the step's loss."""
    per, loss = (term.per, term.loss) if isinstance(term, Term) else ("token", term)
    return (loss * weights[per]).sum()


def _nothing(scores: Scores) -> torch.Tensor:
    """0, with every module in its graph."""
    zero = (scores.logprobs if scores.outputs is None else scores.outputs).sum() * 0.0
    for more in (scores.values, scores.divergence):
        if more is not None:
            zero = zero + more.sum() * 0.0
    return zero
