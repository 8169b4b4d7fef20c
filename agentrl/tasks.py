"""The task source: which task each place of dispatch order plays. A pure function of seed and place, so a cursor is a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agentrl.errors import ConfigError
from agentrl.records import Task

if TYPE_CHECKING:
    from collections.abc import Mapping


class Rows(Protocol):
    """A split of an environment: rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class TaskSource:
    """Shuffles the rows anew each epoch; every task is dispatched once an epoch.

    Example: with 3 rows, places 0 to 2 are the first epoch in one order and 3 to 5 the second in another.
    """

    def __init__(self, environment: str, rows: Rows, seed: int) -> None:
        if len(rows) == 0:
            raise ConfigError(f"environment {environment!r} gave no training tasks: tasks('train') is empty")
        self.environment = environment
        self._rows = rows
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def row_at(self, place: int) -> int:
        """Number of the row in this place of dispatch order."""
        epoch, at = divmod(place, len(self._rows))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
            self._epoch = epoch
        return int(self._order[at])

    def task_of(self, row: int) -> Task:
        """The task of a row. Raises `ConfigError` for a row that is no JSON object."""
        return make_task(self.environment, self._rows, row)

    def task(self, place: int) -> Task:
        """The task in this place of dispatch order. Raises `ConfigError` for a row that is no JSON object."""
        return self.task_of(self.row_at(place))


def make_task(environment: str, rows: Rows, index: int) -> Task:
    """The task of one row. Raises `ConfigError` for a row that is no JSON object."""
    row = rows[index]
    try:
        return Task.from_row(environment, row)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"environment {environment!r}: row {index} is not a JSON object ({error}); give plain numbers, strings, lists and dicts"
        ) from error
