"""The loss of one micro-batch: pack, forward pass, the objective's own losses, and the weights that make them parts of the step's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.learner.batch import token_batch
from agentrl.learner.packing import pack
from agentrl.learner.samples import FILLER

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agentrl.learner.batch import Part, Weighted
    from agentrl.learner.metrics import StepMetrics
    from agentrl.learner.model import Scores
    from agentrl.learner.models import Models
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

    def __call__(self, units: Sequence[Sequence[Weighted]], metrics: StepMetrics) -> torch.Tensor:
        """The micro-batch's part of the step's loss, a scalar with a graph; 0 for no units, which keep a rank in step with the others."""
        active = [one for unit in units for one in unit]
        with metrics.timing("prepare"):
            packed = pack([one.sample for one in active] or [FILLER], self.device, ragged=self.ragged)
        with metrics.timing("forward"):
            scores = self.models.forward(packed)
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
            batch, weights = token_batch(units, self.part, scores.logprobs, scores.entropy, scores.values, step=self.step)
            losses = self.objective.loss(batch, self.options)
            policy = (losses.loss * weights[losses.per]).sum()
            terms = {name: (term * weights["token"]).sum() for name, term in losses.terms.items()}
            loss = sum(terms.values(), policy)
            parts = {"loss": loss} | ({"policy_loss": policy} | {f"loss/{name}": term for name, term in terms.items()} if terms else {})
            metrics.add(batch, losses, parts, scores.entropy)
        return loss


def _nothing(scores: Scores) -> torch.Tensor:
    """0, with every module in its graph."""
    zero = scores.logprobs.sum() * 0.0
    return zero if scores.values is None else zero + scores.values.sum() * 0.0
