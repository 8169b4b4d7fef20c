"""The training step, whole: what a step of groups or examples does to the weights.

    groups of the step, or examples of a dataset, the same on every rank
      -> candidates   scorable rollouts, or texts, as rows of tokens            (samples.py, examples.py)
      -> scores       log-probs of a reference and of the start, values         (scoring.py)
      -> signals      advantages, chosen tokens, pairs over the whole step      (signals.py)
      -> parts        one optimizer step or several, each with its denominators (batch.py)
      for each part
        -> packs      micro-batches without padding, dealt to the ranks         (packing.py)
        -> log-probs  the model's forward pass                                  (model.py, attention.py, logprobs.py)
        -> loss       the objective's, times the weights; backward
        -> one optimizer step, or an error where something is not finite

All that depends on the whole step is known before the first backward pass, so the gradient does not depend on how a step is cut.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.errors import LearnerDiverged
from agentrl.learner import ranks
from agentrl.learner.batch import parts_of
from agentrl.learner.examples import candidates_of, together
from agentrl.learner.lanes import in_turn
from agentrl.learner.loss import MicroBatchLoss
from agentrl.learner.metrics import StepMetrics, merged
from agentrl.learner.noise import Noise
from agentrl.learner.packing import dealt
from agentrl.learner.samples import candidates
from agentrl.learner.scoring import score
from agentrl.learner.signals import REFERENCE, signals_of
from agentrl.records import Group

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.config import RunConfig
    from agentrl.examples import Example
    from agentrl.learner.batch import Part, Weighted
    from agentrl.learner.lanes import Lanes
    from agentrl.learner.models import Models
    from agentrl.learner.samples import Candidates, Sample
    from agentrl.learner.signals import Signals
    from agentrl.objectives.base import Objective, ObjectiveConfig
    from agentrl.objectives.needs import Needs

    StepData = Sequence[Group | Example]
    """Of a whole step, the same on every rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What one step trains for."""

    config: RunConfig
    objective: Objective
    options: ObjectiveConfig
    """As they are in force."""
    needs: Needs
    rate: float
    """Learning rate of the policy."""
    step: int
    """Optimizer steps done before."""
    seed: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepper:
    """Takes steps with some models, on one rank or several."""

    models: Models
    accelerator: Accelerator
    lanes: Lanes | None
    """Threads that compute micro-batches side by side, where that helps."""
    ragged: bool
    """The attention kernel takes segments of any lengths."""

    def take_step(self, data: StepData, aim: Aim, spare_free: Callable[[], bool]) -> dict[str, float]:
        """Train on these groups or examples and return the figures; raises `LearnerDiverged` as `Learner.update` does."""
        metrics = StepMetrics()
        found, signals, parts = self._prepare(data, aim, metrics)
        done = [self._optimize(part, aim, metrics if index == 0 else StepMetrics(), spare_free) for index, part in enumerate(parts)]
        figures = merged([one for one, _ in done]) | found.counts | signals.counts
        figures |= {
            "learner/rollouts": float(len(signals.credited)),
            "learner/counted_tokens": float(sum(len(one.advantages) for one in signals.credited)),
            "learner/optimizer_steps": float(sum(bool(part.active) for part in parts)),
        }
        seconds = merged([one for _, one in done])
        return figures | seconds | {"learning_rate": aim.rate, "learner/skipped": float(not any(part.active for part in parts))}

    def evaluate(self, data: StepData, aim: Aim) -> dict[str, float]:
        """What a step on this data would report of the loss, without the step; `learner/counted_tokens` among it."""
        metrics = StepMetrics()
        _, signals, parts = self._prepare(data, aim, metrics)
        figures: list[dict[str, float]] = []
        for part in parts[:1]:
            batches = self._deal(aim.config, [tuple(one.sample for one in unit) for unit in part.active]) if part.active else []
            compute = self._compute(part, aim)

            @torch.no_grad()  # which holds for one thread alone
            def work(index: int, part: Part = part, batches: list[list[int]] = batches, compute: MicroBatchLoss = compute) -> StepMetrics:
                own = StepMetrics()
                compute([part.active[place] for place in batches[index]], own)
                return own

            in_turn(self.lanes, len(batches), work, metrics.take_in)
            figures.append(metrics.gather(self.accelerator, part))
        self.models.reshard()
        return merged(figures) | {"learner/counted_tokens": float(sum(len(one.advantages) for one in signals.credited))}

    def reference_of(self, examples: Sequence[Example], aim: Aim) -> list[np.ndarray]:
        """[trained] float32 nats under the reference for each text of the examples; a collective."""
        found = candidates_of(examples, aim.needs)
        batches = self._deal(aim.config, [(sample,) for sample in found.samples])
        columns = score(found.samples, batches, self.models, self.accelerator, ragged=self.ragged, lanes=self.lanes, wanted=(REFERENCE,))
        places = [member.place for members in found.members for member in members]
        return [columns[place][REFERENCE] if place >= 0 else np.zeros(0, dtype=np.float32) for place in places]

    def _prepare(self, data: StepData, aim: Aim, metrics: StepMetrics) -> tuple[Candidates, Signals, list[Part]]:
        """All that depends on the whole step, before the first backward pass."""
        needs = aim.needs
        with metrics.timing("prepare"):
            found = self._found(data, aim)
        with metrics.timing("reference"):
            scores: Sequence[Mapping[str, np.ndarray]] = [{} for _ in found.samples]
            if found.samples and aim.needs is self.models.needs:  # an objective of a warm start needs nothing
                batches = self._deal(aim.config, [(sample,) for sample in found.samples])
                scores = score(found.samples, batches, self.models, self.accelerator, ragged=self.ragged, lanes=self.lanes)
        with metrics.timing("prepare"):
            signals = signals_of(found, scores, aim.objective, aim.options, needs, seed=aim.seed)
            parts = parts_of(
                found.samples,
                signals,
                needs,
                normalization=aim.objective.normalization(aim.options),
                max_tokens=aim.config.sampling.max_tokens,
                skips_zero=aim.objective.zero_advantage_is_zero_loss(aim.options),
                seed=aim.seed,
            )
        return found, signals, parts

    def _found(self, data: StepData, aim: Aim) -> Candidates:
        found = self._samples(data, aim)
        foreign = None if self.models.teachers is None or aim.needs.teacher is None else self.models.teachers.foreign
        return found if foreign is None else foreign.aligned(found)

    def _samples(self, data: StepData, aim: Aim) -> Candidates:
        groups = [one for one in data if isinstance(one, Group)]
        if aim.objective.data is None:
            return candidates(groups, aim.config, aim.needs)
        examples = aim.objective.prepare([one for one in data if not isinstance(one, Group)], aim.options)
        given = candidates_of(examples, aim.needs, self.models.policy.padding)
        return together(candidates(groups, aim.config, aim.needs), given) if groups else given

    def _compute(self, part: Part, aim: Aim, *, noisy: bool = False) -> MicroBatchLoss:
        noise = Noise(alpha=aim.needs.noise, seed=aim.seed, width=self.models.policy.width) if noisy and aim.needs.noise else None
        return MicroBatchLoss(
            models=self.models,
            objective=aim.objective,
            options=aim.options,
            part=part,
            step=aim.step,
            device=self.accelerator.device,
            ragged=self.ragged,
            teachers=self.models.teachers if aim.needs is self.models.needs else None,
            noise=noise,
        )

    def _optimize(
        self, part: Part, aim: Aim, metrics: StepMetrics, spare_free: Callable[[], bool]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One optimizer step; figures and seconds. Where nothing has a gradient there is none, on any rank."""
        with metrics.timing("prepare"):
            batches = self._deal(aim.config, [tuple(one.sample for one in unit) for unit in part.active]) if part.active else []
        micro_batches = [[part.active[place] for place in batch] for batch in batches]
        compute = self._compute(part, aim, noisy=True)
        if self.lanes is not None:
            self._accumulate_in_lanes(self.lanes, micro_batches, compute, metrics, spare_free)
        else:
            for index, units in enumerate(micro_batches):
                self._accumulate(units, compute, metrics, last=index == len(batches) - 1)
        if self.models.teachers is not None:
            self.models.teachers.reshard()
        figures = metrics.gather(self.accelerator, part)
        with metrics.timing("optimizer"):
            figures |= self._apply(figures["loss"], aim) if batches else {"grad_norm": 0.0}
        return figures, metrics.seconds

    def _deal(self, config: RunConfig, units: Sequence[tuple[Sample, ...]]) -> list[list[int]]:
        """This rank's micro-batches, as places in `units`. Each rank has the same number, of like sizes; an empty one fills up."""
        return dealt(
            units,
            config.learner.tokens_per_micro_batch,
            self.models.policy.base.config,
            self.accelerator.device,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            lanes=self.lanes is not None,
        )

    def _accumulate(self, units: Sequence[Sequence[Weighted]], compute: MicroBatchLoss, metrics: StepMetrics, *, last: bool) -> None:
        """Forward and backward of one micro-batch; an empty one keeps this rank in step with the others and adds zero."""
        with contextlib.ExitStack() as stack:
            for module in self.models.modules:
                stack.enter_context(ranks.accumulating(module, last=last))
            loss = compute(units, metrics)
            with metrics.timing("backward"):
                (loss * self.accelerator.num_processes).backward()  # DDP and FSDP average gradients over ranks; the loss is a sum

    def _accumulate_in_lanes(
        self,
        lanes: Lanes,
        micro_batches: Sequence[Sequence[Sequence[Weighted]]],
        compute: MicroBatchLoss,
        metrics: StepMetrics,
        spare_free: Callable[[], bool],
    ) -> None:
        """Forward and backward of all micro-batches, several at once; the gradients are added up in order."""
        trained = self.models.trained

        def work(index: int) -> tuple[StepMetrics, tuple[torch.Tensor | None, ...]]:
            own = StepMetrics()
            loss = compute(micro_batches[index], own)
            with own.timing("backward"):
                return own, torch.autograd.grad(loss, trained, allow_unused=True)

        def merge(result: tuple[StepMetrics, tuple[torch.Tensor | None, ...]]) -> None:
            metrics.take_in(result[0])
            for parameter, grad in zip(trained, result[1], strict=True):
                if parameter.grad is None:
                    parameter.grad = grad
                elif grad is not None:
                    parameter.grad.add_(grad)

        lanes.run(len(micro_batches), work, merge, spare_free=spare_free)

    def _apply(self, loss: float, aim: Aim) -> dict[str, float]:
        """Clip and step; every rank sees the same norms and the same loss, and so does the same."""
        if aim.needs.critic is not None:
            self.models.warm_up(aim.needs.critic, aim.step)
        norms = [_norm([one.grad for one in _parameters(optimizer) if one.grad is not None]) for optimizer in self.models.optimizers]
        if not all(map(math.isfinite, (loss, *norms))):
            for optimizer in self.models.optimizers:
                optimizer.zero_grad()
            raise LearnerDiverged(
                f"step {aim.step + 1}: loss {loss}, gradient norm {' and '.join(map(str, norms))}; the weights are as they were before "
                "this optimizer step. Lower learner.lr, or look at the rollouts or rows of this step"
            )
        limit = aim.config.learner.max_grad_norm
        rates = self.models.rates(aim.rate)
        if aim.needs.critic is None:
            rates[1:] = [0.0] * len(rates[1:])  # a critic that this objective does not train is not decayed either
        for optimizer, norm, own_rate in zip(self.models.optimizers, norms, rates, strict=True):
            if limit is not None and norm > limit:
                held = [one for one in _parameters(optimizer) if one.grad is not None]
                torch.nn.utils.clip_grads_with_norm_(held, limit, torch.full((), norm, device=self.accelerator.device))
            for group in optimizer.param_groups:
                group["lr"] = own_rate
            optimizer.step()
            optimizer.zero_grad()
        self._check_weights(aim)
        return {"grad_norm": norms[0]} | ({"critic/grad_norm": norms[1]} if len(norms) > 1 else {})

    def _check_weights(self, aim: Aim) -> None:
        """Raise `LearnerDiverged` where an optimizer step has made a weight infinite or NaN, before anybody is given it."""
        if not math.isfinite(_norm([one.detach() for one in self.models.trained])):
            raise LearnerDiverged(
                f"step {aim.step + 1} made weights infinite or NaN, though its gradients were finite: a learning rate of {aim.rate:g} is "
                "too large. Nothing of this step was published or saved; go on from the last checkpoint with a lower one"
            )


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    """Global L2 norm over all of them, and over all ranks' shards."""
    return float(ranks.whole(torch.nn.utils.get_total_norm(tensors))) if tensors else 0.0
