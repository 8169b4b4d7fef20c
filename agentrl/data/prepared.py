"""The tokenized datasets of a run, as one sequence and in the order of an epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, overload

import xxhash

from agentrl.data.mixtures import epoch_order
from agentrl.examples import Example

if TYPE_CHECKING:
    import numpy as np

    from agentrl.data.table import Examples

MEANS = ("data/fill",)
"""Counts that are no sums."""


class Prepared(Sequence[Example]):
    """The examples of one or more datasets, one behind the other.

    Args:
        parts: a dataset each.
        weights: their shares of an epoch, in proportion to each other; None gives each as many examples as it has.
    """

    def __init__(self, parts: Sequence[Examples], weights: Sequence[float] | None = None) -> None:
        self.parts, self.weights = tuple(parts), None if weights is None else tuple(weights)
        self._ends = list(accumulate(map(len, parts)))
        self.counts = _summed([part.counts for part in parts])
        """What was read, left out and cut, as metrics."""
        self.schema = ", ".join(dict.fromkeys(part.schema for part in parts))
        """Of the rows, in words."""
        self.fingerprint = _fingerprint(self.parts)
        """Of the content, for a resumed run to check that it trains the same rows."""

    def __len__(self) -> int:
        """Examples of all datasets."""
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, or several."""
        chosen = range(len(self))[index]
        return [self._example(at) for at in chosen] if isinstance(chosen, range) else self._example(chosen)

    def order(self, seed: int | None, epoch: int) -> np.ndarray:
        """The examples of an epoch, by number, in the order in which they are trained: a pure function of seed and epoch.

        Without weights each comes once; see `mixtures.epoch_order`. No seed takes the rows as they stand.
        """
        return epoch_order([len(part) for part in self.parts], self.weights, seed=seed or 0, epoch=epoch, shuffle=seed is not None)

    def _example(self, index: int) -> Example:
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


def _fingerprint(parts: Sequence[Examples]) -> str:
    if len(parts) == 1:
        return parts[0].fingerprint
    return xxhash.xxh3_128("".join(part.fingerprint for part in parts).encode()).hexdigest()


def _summed(counts: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: sum(one.get(name, 0.0) for one in counts) / (len(counts) if name in MEANS else 1) for name in names}
