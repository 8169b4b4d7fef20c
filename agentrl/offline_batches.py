"""Which examples each step of an offline run trains, and how many steps there are: pure functions of the seed and of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

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
    """

    def __init__(self, examples: Examples, *, batch_size: int, seed: int | None, last: int | None) -> None:
        self._examples, self._batch_size, self._seed, self._last = examples, batch_size, seed, last
        self._known: tuple[int, np.ndarray] = (0, examples.order(seed, 0))
        self._epoch_length = len(self._known[1])

    def take(self, step: int) -> list[Example]:
        """Those of the optimizer step of this number, from 0."""
        start = step * self._batch_size
        end = start + self._batch_size if self._last is None else min(start + self._batch_size, self._last)
        return [self._examples[self.row_at(place)] for place in range(start, end)]

    def row_at(self, place: int) -> int:
        """Number of the example in this place of the run's order."""
        epoch, at = divmod(place, self._epoch_length)
        if self._known[0] != epoch:
            self._known = (epoch, self._examples.order(self._seed, epoch))
        return int(self._known[1][at])

    def epoch(self, step: int) -> float:
        """How often the data was gone over before this step."""
        done = step * self._batch_size
        return (done if self._last is None else min(done, self._last)) / self._epoch_length

    def place_of(self, step: int) -> None:
        """Nothing: the order is a function of the seed."""


def planned_steps(config: RunConfig, num_examples: int) -> tuple[int, int | None]:
    """Optimizer steps of the run, and how many examples they take: all of some epochs, or as many as `steps` take (None)."""
    epochs = config.epochs or (1 if config.steps is None else None)
    if epochs is None:
        return config.num_steps, None
    whole = math.ceil(num_examples * epochs / config.batch_size)
    if config.steps is not None and config.steps < whole:
        return config.steps, None
    return whole, num_examples * epochs
