"""The training step, whole: what a step of groups does to the weights.

    groups of the step, the same on every rank
      -> candidates   scorable rollouts as rows of tokens                       (samples.py)
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
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from agentrl.checksum import weights_checksum
from agentrl.errors import CheckpointError, LearnerDiverged
from agentrl.learner import checkpoint, ranks
from agentrl.learner.attention import takes_ragged
from agentrl.learner.batch import parts_of
from agentrl.learner.export import export
from agentrl.learner.lanes import Lanes
from agentrl.learner.loss import MicroBatchLoss
from agentrl.learner.metrics import StepMetrics, merged
from agentrl.learner.model import plain_logprobs
from agentrl.learner.models import Models
from agentrl.learner.optim import learning_rate
from agentrl.learner.packing import dealt
from agentrl.learner.samples import candidates
from agentrl.learner.scoring import score
from agentrl.learner.signals import signals_of
from agentrl.learner.weights import adapter_config, adapter_weights, all_weights, trained_weights
from agentrl.objectives.base import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.learner.batch import Part, Weighted
    from agentrl.learner.model import Policy
    from agentrl.learner.samples import Sample
    from agentrl.objectives.base import Objective, ObjectiveConfig
    from agentrl.records import Group

LANE_PARAMETERS = 8_000_000
"""Trained parameters up to which micro-batches are computed side by side on a CPU. Each lane holds gradients of its own, and a larger
model's products are large enough for torch to share each among all threads."""


WARM_STREAM = int.from_bytes(b"warm")
"""Keeps what is drawn in a warm start apart from what the run draws in a step of the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aim:
    """What one call trains for."""

    objective: Objective
    options: ObjectiveConfig
    """As they are in force."""
    needs: Needs
    rate: float
    """Learning rate of the policy."""
    step: int
    """Optimizer steps done before."""
    seed: tuple[int, ...]


class Learner:
    """A policy, its optimizer and its objective, on one rank or several. Every public method is to be called on every rank alike."""

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        objective_config: ObjectiveConfig,
        model_dir: str,
        *,
        accelerator: Accelerator | None = None,
        master_dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        spare_threads: int = 0,
    ) -> None:
        """Load the policy, and what else the objective asks for: a frozen reference where there is no adapter to switch off, a critic.

        Args:
            config: the run file.
            objective: what is trained.
            objective_config: the objective's own options.
            model_dir: what `from_pretrained` takes.
            accelerator: the ranks; by default those that a launcher started.
            master_dtype: of parameters and optimizer state; float64 is for measuring exactness.
            threads: CPU threads that are the learner's own; by default torch's setting stays.
            spare_threads: CPU threads more that it may use while `update` is told that generation does not need them.

        Raises `ConfigError` for a model that cannot be trained here or a launcher that disagrees with the run file.
        """
        self.step = 0
        """Updates done."""
        self.config = config
        self.accelerator = accelerator or ranks.start(config)
        ranks.check(config, self.accelerator)
        self._objective, self._options = objective, objective_config
        self.state = objective.state(objective_config)
        """What the objective adapts as it goes."""
        self._device = self.accelerator.device
        self.models = Models(config, objective.needs(objective_config), model_dir, self.accelerator, master_dtype)
        self._ragged = takes_ragged(self._device, self.policy.dtype)
        self._lanes = self._make_lanes(threads, spare_threads)

    @property
    def policy(self) -> Policy:
        """The model that is trained to act."""
        return self.models.policy

    def _make_lanes(self, threads: int | None, spare: int) -> Lanes | None:
        """Lanes where they help; else the threads are torch's."""
        if threads is None:
            return None
        alone = self._device.type == "cpu" and self.accelerator.num_processes == 1
        trained = sum(parameter.numel() for parameter in self.models.trained)
        helps = alone and threads + spare > 1 and trained <= LANE_PARAMETERS
        torch.set_num_threads(1 if helps else threads)
        return Lanes(threads, spare) if helps else None

    def update(self, groups: Sequence[Group], *, spare_free: Callable[[], bool] = lambda: True) -> dict[str, float]:
        """Train on these groups, by one optimizer step or the several that the objective makes of them; each rank is given the same ones.

        `spare_free` says, whenever it is asked, whether generation has no use for the spare threads now. A step in which nothing can be
        trained changes no parameter, and counts. Returns metrics, times aside the same on every rank.

        Raises `LearnerDiverged` where scores, the loss or a gradient are not finite, before that optimizer step changed anything, or where
        it made weights so.
        """
        aim = _Aim(
            objective=self._objective,
            options=self._objective.in_force(self._options, self.state),
            needs=self.models.needs,
            rate=learning_rate(self.config.learner, self.step, self.config.steps),
            step=self.step,
            seed=(self.config.seed, self.step),
        )
        figures = self._train(groups, aim, spare_free)
        self.state = self._objective.next_state(self._options, self.state, figures)
        self.step += 1
        self.models.sync_reference(self.step)
        return figures

    def warm(self, groups: Sequence[Group], objective: Objective | None, *, rate: float, number: int) -> dict[str, float]:
        """Train on another run's groups before the first update; nothing counts as a step, and what follows steps does not move on.

        That is the step itself, the learning rate's schedule, what the objective adapts, and a reference that moves. Only the moments of
        the optimizers are left over, until `forget_moments`.

        Args:
            groups: the same on each rank.
            objective: one that needs nothing and whose options are its defaults; None for the learner's own.
            rate: learning rate.
            number: calls before this one, from which staleness and a critic's warm-up count.

        Returns metrics and raises `LearnerDiverged` as `update` does.
        """
        aim = _Aim(
            objective=objective or self._objective,
            options=objective.config.model_validate({}) if objective else self._objective.in_force(self._options, self.state),
            needs=Needs() if objective else self.models.needs,
            rate=rate,
            step=number,
            seed=(self.config.seed, number, WARM_STREAM),
        )
        return self._train(groups, aim, lambda: True)

    def forget_moments(self) -> None:
        """Set the optimizers back to where they were before their first step; in place, so that a checkpoint holds exactly that."""
        for optimizer in self.models.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def _train(self, groups: Sequence[Group], aim: _Aim, spare_free: Callable[[], bool]) -> dict[str, float]:
        metrics, needs = StepMetrics(), aim.needs
        with metrics.timing("prepare"):
            found = candidates(groups, self.config, needs)
        with metrics.timing("reference"):
            scores: Sequence[Mapping[str, np.ndarray]] = [{} for _ in found.samples]
            if found.samples and aim.objective is self._objective:
                batches = self._deal([(sample,) for sample in found.samples])
                scores = score(found.samples, batches, self.models, self.accelerator, ragged=self._ragged)
        with metrics.timing("prepare"):
            signals = signals_of(found, scores, aim.objective, aim.options, needs, seed=aim.seed)
            parts = parts_of(
                found.samples,
                signals,
                needs,
                normalization=aim.objective.normalization(aim.options),
                max_tokens=self.config.sampling.max_tokens,
                skips_zero=aim.objective.zero_advantage_is_zero_loss(aim.options),
                seed=aim.seed,
            )
        done = [self._optimize(part, aim, metrics if index == 0 else StepMetrics(), spare_free) for index, part in enumerate(parts)]
        figures = merged([one for one, _ in done]) | found.counts | signals.counts
        figures |= {
            "learner/rollouts": float(len(signals.credited)),
            "learner/counted_tokens": float(sum(len(one.advantages) for one in signals.credited)),
            "learner/optimizer_steps": float(sum(bool(part.active) for part in parts)),
        }
        seconds = merged([one for _, one in done])
        return figures | seconds | {"learning_rate": aim.rate, "learner/skipped": float(not any(part.active for part in parts))}

    def wake_spare(self) -> None:
        """Tell an `update` under way that the spare threads may have become free; from any thread."""
        if self._lanes is not None:
            self._lanes.wake()

    def _optimize(
        self, part: Part, aim: _Aim, metrics: StepMetrics, spare_free: Callable[[], bool]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One optimizer step; figures and seconds. Where nothing has a gradient there is none, on any rank."""
        with metrics.timing("prepare"):
            batches = self._deal([tuple(one.sample for one in unit) for unit in part.active]) if part.active else []
        micro_batches = [[part.active[place] for place in batch] for batch in batches]
        compute = MicroBatchLoss(
            models=self.models,
            objective=aim.objective,
            options=aim.options,
            part=part,
            step=aim.step,
            device=self._device,
            ragged=self._ragged,
        )
        if self._lanes is not None:
            self._accumulate_in_lanes(self._lanes, micro_batches, compute, metrics, spare_free)
        else:
            for index, units in enumerate(micro_batches):
                self._accumulate(units, compute, metrics, last=index == len(batches) - 1)
        figures = metrics.gather(self.accelerator, part)
        with metrics.timing("optimizer"):
            figures |= self._apply(figures["loss"], aim) if batches else {"grad_norm": 0.0}
        return figures, metrics.seconds

    def _deal(self, units: Sequence[tuple[Sample, ...]]) -> list[list[int]]:
        """This rank's micro-batches, as places in `units`. Each rank has the same number, of like sizes; an empty one fills up."""
        return dealt(
            units,
            self.config.learner.tokens_per_micro_batch,
            self.policy.base.config,
            self._device,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            lanes=self._lanes is not None,
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

    def _apply(self, loss: float, aim: _Aim) -> dict[str, float]:
        """Clip and step; every rank sees the same norms and the same loss, and so does the same."""
        if aim.needs.critic is not None:
            self.models.warm_up(aim.needs.critic, aim.step)
        norms = [_norm([one.grad for one in _parameters(optimizer) if one.grad is not None]) for optimizer in self.models.optimizers]
        if not all(map(math.isfinite, (loss, *norms))):
            for optimizer in self.models.optimizers:
                optimizer.zero_grad()
            raise LearnerDiverged(
                f"step {aim.step}: loss {loss}, gradient norm {' and '.join(map(str, norms))}; the weights are as they were before this "
                "optimizer step. Lower learner.lr, or look at the rollouts of this step"
            )
        limit = self.config.learner.max_grad_norm
        rates = self.models.rates(aim.rate)
        if aim.needs.critic is None:
            rates[1:] = [0.0] * len(rates[1:])  # a critic that this objective does not train is not decayed either
        for optimizer, norm, own_rate in zip(self.models.optimizers, norms, rates, strict=True):
            if limit is not None and norm > limit:
                held = [one for one in _parameters(optimizer) if one.grad is not None]
                torch.nn.utils.clip_grads_with_norm_(held, limit, torch.tensor(norm, device=self._device))
            for group in optimizer.param_groups:
                group["lr"] = own_rate
            optimizer.step()
            optimizer.zero_grad()
        self._check_weights(aim)
        return {"grad_norm": norms[0]} | ({"critic/grad_norm": norms[1]} if len(norms) > 1 else {})

    def _check_weights(self, aim: _Aim) -> None:
        """Raise `LearnerDiverged` where an optimizer step has made a weight infinite or NaN, before anybody is given it."""
        if not math.isfinite(_norm([one.detach() for one in self.models.trained])):
            raise LearnerDiverged(
                f"step {aim.step} made weights infinite or NaN, though its gradients were finite: a learning rate of {aim.rate:g} is too "
                "large. Nothing of this step was published or saved; go on from the last checkpoint with a lower one"
            )

    @property
    def weights_are_partial(self) -> bool:
        """Whether `named_weights` leaves out what never changes: with an adapter, all layers without one."""
        return self.policy.adapted

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What training changes, by the names of the model's own `state_dict`, adapters merged in a copy, tied weights once.

        Where the ranks hold shards, this is a collective that gathers one tensor at a time: run it to its end on every rank.
        """
        return trained_weights(self.policy)

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole model, an adapter merged in a copy; a collective, as `named_weights`."""
        return all_weights(self.policy)

    def adapter_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapter's own tensors by peft's names; a collective, as `named_weights`."""
        return adapter_weights(self.policy)

    def adapter_config(self) -> dict[str, Any]:
        """The adapter's configuration as peft writes it; raises `ValueError` without an adapter."""
        return adapter_config(self.policy)

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        """Log-probs of `ids[1:]` in nats at temperature 1, by transformers' own forward pass; where the ranks hold no shards."""
        return plain_logprobs(self.policy, ids)

    def fingerprint(self) -> str:
        """Checksum of the policy's trained parameters that this rank holds: equal as long as no step has changed them. No collective."""
        trained = [(name, parameter) for name, parameter in self.policy.model.named_parameters() if parameter.requires_grad]
        return weights_checksum((name, one.to_local() if isinstance(one, DTensor) else one) for name, one in trained)

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on bit for bit; raises `CheckpointError` where the disk refuses."""
        for name, model, optimizer in self.models.saved():
            checkpoint.save_model(folder / name, model, optimizer, writes=self.accelerator.is_main_process)
        checkpoint.save_state(folder, self.step, self.state, writes=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises `CheckpointError` that names what is missing or does not fit."""
        step, state = checkpoint.load_state(folder)
        self.models.check_kept(folder)
        for name, model, optimizer in self.models.saved():
            checkpoint.load_model(folder / name, model, optimizer)
        if state.keys() != self.state.keys():
            raise CheckpointError(
                f"checkpoint {folder} keeps {sorted(state) or 'nothing'} of the objective, and this run adapts "
                f"{sorted(self.state) or 'nothing'}: the objective's options changed"
            )
        self.step, self.state = step, state

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase | str | None) -> None:
        """Write the final model for `from_pretrained`, the adapter merged; with an adapter, that alone in `adapter/` too.

        `tokenizer` is laid beside it, or read from the folder that it names. Raises `CheckpointError` where the disk refuses.
        """
        export(folder, self.policy, tokenizer, writes=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    """Global L2 norm over all of them, and over all ranks' shards."""
    return float(ranks.whole(torch.nn.utils.get_total_norm(tensors))) if tensors else 0.0
