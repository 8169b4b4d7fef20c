"""Which examples each step of an offline run trains, and how many steps there are: pure functions of the seed and of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from agentrl.config import RunConfig
    from agentrl.examples import Example


class Examples(Protocol):
    """The rows of a dataset, tokenized."""

    counts: dict[str, float]
    """What became of the rows, `data/...`."""
    fingerprint: str
    """Of their content: a resumed run trains on the same ones."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def order(self, seed: int | None, epoch: int) -> np.ndarray:
        """Numbers of the examples of an epoch, in the order in which they are trained; every epoch has as many. No seed: as they stand."""
        ...


class Begun(NamedTuple):
    """Where a run goes on in its order."""

    step: int = 0
    """Optimizer steps done."""
    taken: int = 0
    """Examples that they trained, counted over epochs."""


START = Begun()


class Changed:
    """Examples of which each is changed as it is taken.

    Args:
        examples: as they were read.
        change: number and example -> the example in its place.
    """

    def __init__(self, examples: Examples, change: Callable[[int, Example], Example]) -> None:
        self.counts, self.fingerprint = examples.counts, examples.fingerprint
        self._examples, self._change = examples, change

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> Example:
        return self._change(index, self._examples[index])

    def order(self, seed: int | None, epoch: int) -> np.ndarray:
        """That of the examples."""
        return self._examples.order(seed, epoch)


class Batches(Protocol):
    """The examples of each step."""

    def take(self, step: int) -> list[Example]:
        """Those of the optimizer step of this number, from 0; the steps come in order."""
        ...

    def epoch(self, step: int) -> float:
        """How often the data was gone over before this step."""
        ...

    def place_of(self, step: int) -> dict[str, Any] | None:
        """What a checkpoint keeps to take up the data at this step; None where the step's number says it all."""
        ...


class ShuffledBatches:
    """Batches in an order of the seed's, epoch after epoch; the last step of a run takes what is left.

    Args:
        examples: of the whole dataset.
        batch_size: examples of a step.
        seed: of the order; None takes the examples as they stand.
        last: examples of the whole run, counted over epochs; None for as many as are asked for.
        begun: what earlier steps took, which may have been of another size.
    """

    def __init__(self, examples: Examples, *, batch_size: int, seed: int | None, last: int | None, begun: Begun = START) -> None:
        self._examples, self._batch_size, self._seed, self._last, self._begun = examples, batch_size, seed, last, begun
        self._known: tuple[int, np.ndarray] = (0, examples.order(seed, 0))
        self._epoch_length = len(self._known[1])

    def take(self, step: int) -> list[Example]:
        """Those of the optimizer step of this number, from 0."""
        return [self._examples[self.row_at(place)] for place in range(self._taken(step), self._taken(step + 1))]

    def row_at(self, place: int) -> int:
        """Number of the example in this place of the run's order."""
        epoch, at = divmod(place, self._epoch_length)
        if self._known[0] != epoch:
            self._known = (epoch, self._examples.order(self._seed, epoch))
        return int(self._known[1][at])

    def epoch(self, step: int) -> float:
        """How often the data was gone over before this step."""
        return self._taken(step) / self._epoch_length

    def place_of(self, step: int) -> dict[str, Any]:
        """How many examples were trained before this step, counted over epochs; the seed says the rest."""
        return {"taken": self._taken(step)}

    def _taken(self, step: int) -> int:
        """Examples before this step."""
        done = self._begun.taken + (step - self._begun.step) * self._batch_size
        return done if self._last is None else min(done, self._last)


def batch_of(config: RunConfig, num_examples: int) -> int:
    """Examples of a step: `batch_size`, or all where an epoch has fewer, so that none comes twice in one step."""
    return min(config.batch_size, num_examples)


def planned_steps(config: RunConfig, num_examples: int, begun: Begun = START) -> tuple[int, int | None]:
    """Optimizer steps of the run, and how many examples they take: all of some epochs, or as many as `steps` take (None).

    Args:
        config: the run file.
        num_examples: of an epoch.
        begun: what was done already.
    """
    epochs = config.epochs or (1 if config.steps is None else None)
    if epochs is None:
        return config.num_steps, None
    left = max(0, num_examples * epochs - begun.taken)
    whole = begun.step + math.ceil(left / batch_of(config, num_examples))
    if config.steps is not None and config.steps < whole:
        return config.steps, None
    return whole, num_examples * epochs
