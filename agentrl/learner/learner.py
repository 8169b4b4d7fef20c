"""The learner: models, an optimizer and an objective behind a few methods. What a step does is in step.py."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from agentrl.checksum import weights_checksum
from agentrl.errors import CheckpointError
from agentrl.learner import checkpoint, ranks
from agentrl.learner.attention import takes_ragged
from agentrl.learner.averages import Averages
from agentrl.learner.embedding import embeddings
from agentrl.learner.export import export
from agentrl.learner.lanes import lanes_where_they_help
from agentrl.learner.model import plain_logprobs
from agentrl.learner.models import Models
from agentrl.learner.optim import learning_rate
from agentrl.learner.step import Aim, Stepper
from agentrl.learner.weights import adapter_config, adapter_weights, all_weights, is_quantized, trained_weights
from agentrl.objectives.needs import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.examples import Example
    from agentrl.learner.model import Policy
    from agentrl.objectives.base import Objective, ObjectiveConfig
    from agentrl.records import Group

EMA_FOLDER = "ema"
"""Within the final model's folder: the average of the weights, as a model of its own."""
WARM_STREAM = int.from_bytes(b"warm")
"""Keeps what is drawn in a warm start apart from what the run draws in a step of the same number."""


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
        reference: bool = True,
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
            reference: False loads none, for examples that bring the reference's log-probs with them.

        Raises `ConfigError` for a model that cannot be trained here or a launcher that disagrees with the run file.
        """
        self.step = 0
        """Updates done."""
        self.further: Callable[[int], Sequence[Example]] | None = None
        """Examples of a dataset that each step trains beside what it is given, by the step's number; the same on each rank."""
        self.config = config
        self.accelerator = accelerator or ranks.start(config)
        ranks.check(config, self.accelerator)
        self._objective, self._options = objective, objective_config
        self.state = objective.state(objective_config)
        """What the objective adapts as it goes."""
        self.models = Models(config, objective.needs(objective_config), model_dir, self.accelerator, master_dtype, reference=reference)
        self.averages = None if config.learner.ema is None else Averages(config.learner.ema, self.models.policy)
        """The running average of the weights, where the run file has one."""
        alone = self.accelerator.device.type == "cpu" and self.accelerator.num_processes == 1
        trained = sum(parameter.numel() for parameter in self.models.trained)
        self._lanes = lanes_where_they_help(trained if alone else None, threads, spare_threads)
        ragged = takes_ragged(self.accelerator.device, self.policy.dtype)
        self._stepper = Stepper(models=self.models, accelerator=self.accelerator, lanes=self._lanes, ragged=ragged)

    @property
    def policy(self) -> Policy:
        """The model that is trained to act."""
        return self.models.policy

    def update(self, groups: Sequence[Group], *, spare_free: Callable[[], bool] = lambda: True) -> dict[str, float]:
        """Train on these groups, by one optimizer step or the several that the objective makes of them; each rank is given the same ones.

        `spare_free` says, whenever it is asked, whether generation has no use for the spare threads now. A step in which nothing can be
        trained changes no parameter, and counts. Returns metrics, times aside the same on every rank.

        Raises `LearnerDiverged` where scores, the loss or a gradient are not finite, before that optimizer step changed anything, or where
        it made weights so.
        """
        return self._update(groups, spare_free)

    def update_examples(self, examples: Sequence[Example]) -> dict[str, float]:
        """Train on these examples of a dataset, as `update` does on groups; each rank is given the same ones."""
        return self._update(examples, lambda: True)

    def evaluate_examples(self, examples: Sequence[Example]) -> dict[str, float]:
        """The loss and metrics of these examples under the weights as they are, without a gradient; each rank is given the same ones.

        Under their running average where the run file has that evaluated.
        """
        with self.evaluated_weights():
            return self._stepper.evaluate(examples, self._aim())

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Compute with the weights that the run file has evaluated: as they are, or their running average."""
        return contextlib.nullcontext() if self.averages is None else self.averages.evaluated()

    def reference_of(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """[trained] float32 nats under the reference for each text of each example, in order; a collective."""
        return self._stepper.reference_of(examples, self._aim())

    def embeddings_of(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """[prompts, width] float32: the mean of each prompt's last hidden states under the model that the run begins with; a collective.

        Asked before the first step, when that is the reference or, where none is held, the policy without a new adapter.
        """
        reference, size = self.models.reference, self.config.learner.tokens_per_micro_batch
        bare = reference is None and self.policy.adapted and self.models.start is None
        with self.policy.without_adapter() if bare else contextlib.nullcontext():
            found = embeddings(reference or self.policy, prompts, self.accelerator.device, tokens=size, ragged=self._stepper.ragged)
        self.models.reshard()
        return found

    def forget_reference(self) -> None:
        """Give the reference's memory back: whatever is trained from now on brings the reference's log-probs with it."""
        self.models.reference = self.models.start = None

    def _aim(self) -> Aim:
        return Aim(
            config=self.config,
            objective=self._objective,
            options=self._objective.in_force(self._options, self.state),
            needs=self.models.needs,
            rate=learning_rate(self.config.learner, self.step, self.config.num_steps),
            step=self.step,
            seed=(self.config.seed, self.step),
        )

    def _update(self, data: Sequence[Group] | Sequence[Example], spare_free: Callable[[], bool]) -> dict[str, float]:
        aim = self._aim()
        further = [] if self.further is None else self.further(self.step)
        figures = self._stepper.take_step([*data, *further], aim, spare_free)
        figures |= {name: float(getattr(aim.options, name)) for name in self.state if name in type(aim.options).model_fields}
        self.state = self._objective.next_state(self._options, self.state, figures)
        self.step += 1
        self.models.sync_reference(self.step)
        if self.averages is not None:
            self.averages.update(self.step)
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
        aim = Aim(
            config=self.config,
            objective=objective or self._objective,
            options=objective.config.model_validate({}) if objective else self._objective.in_force(self._options, self.state),
            needs=Needs() if objective else self.models.needs,
            rate=rate,
            step=number,
            seed=(self.config.seed, number, WARM_STREAM),
        )
        figures = self._stepper.take_step(groups, aim, lambda: True)
        if self.averages is not None:
            self.averages.begin()
        return figures

    def forget_moments(self) -> None:
        """Set the optimizers back to where they were before their first step; in place, so that a checkpoint holds exactly that."""
        for optimizer in self.models.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def wake_spare(self) -> None:
        """Tell an `update` under way that the spare threads may have become free; from any thread."""
        if self._lanes is not None:
            self._lanes.wake()

    @property
    def weights_are_partial(self) -> bool:
        """Whether `named_weights` leaves out what never changes: with an adapter, all layers without one."""
        return self.policy.adapted and not is_quantized(self.policy)

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
        for name, tensors in self._tensors().items():
            checkpoint.save_tensors(folder / f"{name}.safetensors", tensors, writes=self.accelerator.is_main_process)
        checkpoint.save_state(folder, self.step, self.state, writes=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises `CheckpointError` that names what is missing or does not fit."""
        step, state = checkpoint.load_state(folder)
        self.models.check_kept(folder)
        for name, model, optimizer in self.models.saved():
            checkpoint.load_model(folder / name, model, optimizer)
        kept = self._tensors()
        for name, key in (("averages", "learner.ema"), ("adapter_start", "learner.lora.reference")):
            checkpoint.load_tensors(folder / f"{name}.safetensors", kept.get(name), key)
        if state.keys() != self.state.keys():
            raise CheckpointError(
                f"checkpoint {folder} keeps {sorted(state) or 'nothing'} of the objective, and this run adapts "
                f"{sorted(self.state) or 'nothing'}: the objective's options changed"
            )
        self.step, self.state = step, state

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds beside models: the averages of the weights, and the adapter that is the reference."""
        found = {}
        if self.averages is not None:
            found["averages"] = {f"{kind}/{name}": one for kind, values in self.averages.values.items() for name, one in values.items()}
        if self.models.start is not None and not self.config.learner.precompute_reference:  # what that needs of it is on disk
            found["adapter_start"] = self.models.start
        return found

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase | str | None) -> None:
        """Write the final model for `from_pretrained`, the adapter merged; with an adapter, that alone in `adapter/` too.

        Where the run file keeps a running average, the average is written in `ema/` in the same way, or is itself the final model.
        `tokenizer` is laid beside it, or read from the folder that it names. Raises `CheckpointError` where the disk refuses.
        """
        writes, ema = self.accelerator.is_main_process, self.config.learner.ema
        if ema is None or not ema.export:
            export(folder, self.policy, tokenizer, writes=writes)
        if self.averages is not None and ema is not None:
            with self.averages.applied():
                export(folder if ema.export else folder / EMA_FOLDER, self.policy, tokenizer, writes=writes)
        self.accelerator.wait_for_everyone()
