"""The training step, whole: what a step of groups does to the weights.

    groups of the step, the same on every rank
      -> candidates   scorable rollouts as rows of tokens                (batch.py)
      -> weights      advantages, and denominators over the whole step   (batch.py)
      -> packs        micro-batches without padding, dealt to the ranks  (packing.py)
      -> log-probs    the model's forward pass                           (model.py, attention.py, logprobs.py)
      -> loss         the objective's, times the weights; backward
      -> one optimizer step, or an error where something is not finite

All that depends on the whole step is known before the first backward pass, so the gradient does not depend on how a step is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from agentrl.checksum import weights_checksum
from agentrl.errors import LearnerDiverged
from agentrl.learner import checkpoint, ranks
from agentrl.learner.attention import takes_ragged
from agentrl.learner.batch import FILLER, Sample, candidates, token_batch, weigh
from agentrl.learner.export import export
from agentrl.learner.lanes import Lanes
from agentrl.learner.metrics import StepMetrics
from agentrl.learner.model import load_policy, plain_logprobs
from agentrl.learner.optim import adamw, learning_rate
from agentrl.learner.packing import finer_end, micro_batch_tokens, micro_batches, pack
from agentrl.learner.weights import adapter_config, adapter_weights, all_weights, trained_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.learner.batch import Weighted
    from agentrl.learner.packing import Pack
    from agentrl.objectives.base import Objective, ObjectiveConfig
    from agentrl.records import Group

LANE_PARAMETERS = 8_000_000
"""Trained parameters up to which micro-batches are computed side by side on a CPU. Each lane holds gradients of its own, and a larger
model's products are large enough for torch to share each among all threads."""


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
        """Load the policy, and a frozen reference where the objective asks for one and there is no adapter to switch off.

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
        """Optimizer steps done."""
        self.config = config
        self.accelerator = accelerator or ranks.start(config)
        ranks.check(config, self.accelerator)
        self._objective, self._options = objective, objective_config
        self._device = self.accelerator.device
        self.policy = load_policy(config, model_dir, self._device, master=master_dtype, trained=True)
        self._needs_reference = objective.needs_reference(objective_config)
        self._reference = None
        if self._needs_reference and config.learner.lora is None:
            self._reference = load_policy(config, model_dir, self._device, master=master_dtype, trained=False)
        self._ragged = takes_ragged(self._device, self.policy.dtype)
        self._model: torch.nn.Module = self.policy
        if self.accelerator.num_processes > 1:
            self._share()
        self._optimizer = adamw(self.policy, config.learner)
        self._lanes = self._make_lanes(threads, spare_threads)

    def _make_lanes(self, threads: int | None, spare: int) -> Lanes | None:
        """Lanes where they help; else the threads are torch's."""
        if threads is None:
            return None
        trained = sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad)
        alone = self._device.type == "cpu" and self.accelerator.num_processes == 1
        helps = alone and threads + spare > 1 and trained <= LANE_PARAMETERS
        torch.set_num_threads(1 if helps else threads)
        return Lanes(threads, spare) if helps else None

    def _share(self) -> None:
        if self.config.learner.sharding == "ddp":
            self._model = ranks.replicate(self.policy, self.accelerator)
            return
        for policy in (self.policy, self._reference):
            if policy is not None:
                ranks.shard(policy, self.accelerator, dtype=self.policy.dtype)

    def update(self, groups: Sequence[Group], *, spare_free: Callable[[], bool] = lambda: True) -> dict[str, float]:
        """Do one optimizer step on these groups; each rank is given the same ones.

        `spare_free` says, whenever it is asked, whether generation has no use for the spare threads now. A step in which nothing can be
        trained changes no parameter, and counts. Returns metrics, times aside the same on every rank.

        Raises `LearnerDiverged` before anything changed where the loss or a gradient is not finite.
        """
        metrics = StepMetrics()
        with metrics.timing("prepare"):
            found = candidates(groups, self.config, self._objective)
        with metrics.timing("reference"):
            reference = self._score_reference(found.samples) if self._needs_reference else None
        with metrics.timing("prepare"):
            step = weigh(found, reference, self.config, self._objective, self._options)
            batches = self._deal([item.sample for item in step.active]) if step.active else []
        micro_batches = [[step.active[place] for place in batch] for batch in batches]
        if self._lanes is not None:
            self._accumulate_in_lanes(self._lanes, micro_batches, metrics, spare_free)
        else:
            for index, active in enumerate(micro_batches):
                self._accumulate(active, metrics, last=index == len(batches) - 1)
        figures = metrics.gather(self.accelerator, step)
        with metrics.timing("optimizer"):
            figures |= self._apply(figures["loss"]) if batches else {"grad_norm": 0.0}
        rate = learning_rate(self.config.learner, self.step, self.config.steps)
        self.step += 1
        return figures | metrics.seconds | {"learning_rate": rate, "learner/skipped": float(not batches)}

    def wake_spare(self) -> None:
        """Tell an `update` under way that the spare threads may have become free; from any thread."""
        if self._lanes is not None:
            self._lanes.wake()

    def _deal(self, samples: Sequence[Sample]) -> list[list[int]]:
        """This rank's micro-batches, as places in `samples`. Each rank has the same number, of like sizes; an empty one fills up."""
        size, rank = self.accelerator.num_processes, self.accelerator.process_index
        most = micro_batch_tokens(self.config.learner.tokens_per_micro_batch, self.policy.base.config, self._device)
        batches = micro_batches(samples, max_tokens=most, multiple_of=size)
        batches.sort(key=lambda batch: -sum(samples[place].num_tokens for place in batch))
        if self._lanes is not None:
            return finer_end(batches)
        return (batches + [[]] * (-len(batches) % size))[rank::size]

    def _accumulate(self, active: Sequence[Weighted], metrics: StepMetrics, *, last: bool) -> None:
        """Forward and backward of one micro-batch; an empty one keeps this rank in step with the others and adds zero."""
        with ranks.accumulating(self._model, last=last):
            loss = self._forward(active, metrics)
            with metrics.timing("backward"):
                (loss * self.accelerator.num_processes).backward()  # DDP and FSDP average gradients over ranks; the loss is a sum

    def _accumulate_in_lanes(
        self, lanes: Lanes, micro_batches: Sequence[Sequence[Weighted]], metrics: StepMetrics, spare_free: Callable[[], bool]
    ) -> None:
        """Forward and backward of all micro-batches, several at once; the gradients are added up in order."""
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

        def compute(index: int) -> tuple[StepMetrics, tuple[torch.Tensor | None, ...]]:
            own = StepMetrics()
            loss = self._forward(micro_batches[index], own)
            with own.timing("backward"):
                return own, torch.autograd.grad(loss, trained, allow_unused=True)

        def merge(result: tuple[StepMetrics, tuple[torch.Tensor | None, ...]]) -> None:
            metrics.take_in(result[0])
            for parameter, grad in zip(trained, result[1], strict=True):
                if parameter.grad is None:
                    parameter.grad = grad
                elif grad is not None:
                    parameter.grad.add_(grad)

        lanes.run(len(micro_batches), compute, merge, spare_free=spare_free)

    def _forward(self, active: Sequence[Weighted], metrics: StepMetrics) -> torch.Tensor:
        """The loss of one micro-batch, a scalar."""
        with metrics.timing("prepare"):
            packed = pack([item.sample for item in active] or [FILLER], self._device, ragged=self._ragged)
        with metrics.timing("forward"):
            logprobs, entropy = self._model(packed)
            loss = self._loss(active, logprobs, entropy, metrics) if active else logprobs.sum() * 0.0
        tokens = sum(item.sample.num_tokens for item in active)
        trained = sum(item.sample.num_trained for item in active)
        computed = len(packed.ids) if active else 0
        metrics.count(tokens=tokens, computed_tokens=computed, trained_tokens=trained, micro_batches=float(bool(active)))
        return loss

    def _loss(self, active: Sequence[Weighted], logprobs: torch.Tensor, entropy: torch.Tensor, metrics: StepMetrics) -> torch.Tensor:
        """The micro-batch's part of the step's loss, a scalar."""
        batch, weights = token_batch(active, logprobs)
        losses = self._objective.loss(batch, self._options)
        loss = (losses.loss * weights[losses.per]).sum()
        metrics.add(batch, losses, loss, entropy)
        return loss

    def _apply(self, loss: float) -> dict[str, float]:
        """Clip and step; every rank sees the same norm and the same loss, and so does the same."""
        trained = [parameter for parameter in self.policy.parameters() if parameter.grad is not None]
        total = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        norm = float(ranks.whole(total))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            self._optimizer.zero_grad()
            raise LearnerDiverged(
                f"step {self.step}: loss {loss}, gradient norm {norm}; the weights are as they were after the last step. "
                "Lower learner.lr, or look at the rollouts of this step"
            )
        limit = self.config.learner.max_grad_norm
        if limit is not None and norm > limit:
            torch.nn.utils.clip_grads_with_norm_(trained, limit, torch.tensor(norm, device=self._device))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config.learner, self.step, self.config.steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"grad_norm": norm}

    @torch.no_grad()
    def _score_reference(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """[trained] float32 for each sample, on every rank: log-probs under the reference, or under the policy without its adapter."""
        if not samples:
            return []
        scored = []
        for batch in self._deal(samples):
            packed = pack([samples[place] for place in batch] or [FILLER], self._device, ragged=self._ragged)
            logprobs = self._reference_logprobs(packed).cpu().numpy()
            ends = np.cumsum([samples[place].num_trained for place in batch])
            scored += [Scored(place=place, logprobs=part) for place, part in zip(batch, np.split(logprobs, ends[:-1]), strict=False)]
        everywhere = ranks.gather_messages(self.accelerator, tuple(scored), tuple[Scored, ...])
        by_place = {one.place: one.logprobs for part in everywhere for one in part}
        return [by_place[place] for place in range(len(samples))]

    def _reference_logprobs(self, packed: Pack) -> torch.Tensor:
        logprobs: torch.Tensor
        if self._reference is not None:
            logprobs, _ = self._reference(packed)
            return logprobs
        with self.policy.without_adapter():
            logprobs, _ = self.policy(packed)
            return logprobs

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
        """Checksum of the trained parameters that this rank holds: equal as long as no step has changed them. No collective."""
        trained = [(name, parameter) for name, parameter in self.policy.named_parameters() if parameter.requires_grad]
        return weights_checksum((name, one.to_local() if isinstance(one, DTensor) else one) for name, one in trained)

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on bit for bit; raises `CheckpointError` where the disk refuses."""
        checkpoint.save(folder, self.policy, self._optimizer, self.step, writes=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises `CheckpointError` that names what is missing or does not fit."""
        self.step = checkpoint.load(folder, self.policy, self._optimizer)

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase | str | None) -> None:
        """Write the final model for `from_pretrained`, the adapter merged; with an adapter, that alone in `adapter/` too.

        `tokenizer` is laid beside it, or read from the folder that it names. Raises `CheckpointError` where the disk refuses.
        """
        export(folder, self.policy, tokenizer, writes=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A sample's log-probs under the reference, as ranks send them to each other."""

    place: int
    logprobs: np.ndarray
