"""Several datasets in one run, each with a share of the rows, and the order of an epoch.

An epoch of datasets of n_1, n_2, ... rows with weights w_1, w_2, ... has about N = n_1 + n_2 + ... rows, of each dataset
N w_i / (w_1 + w_2 + ...) and at least one. Each is gone through pass by pass, and the next epoch goes on where the last one stopped: no row
is drawn again before all the others of its dataset were, whatever its share. Without weights an epoch has every row once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from agentrl.data.rows import JoinedRows, Rows, SelectedRows
from agentrl.data.splits import hold_out

if TYPE_CHECKING:
    from collections.abc import Sequence

_PASS, _EPOCH = 0x9A55, 0xE90C
"""Keep these draws apart from others of the same seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Datasets that were opened, and their shares."""

    parts: tuple[Rows, ...]
    weights: tuple[float, ...] | None = None
    """One a part, in proportion to each other; None gives each as many rows as it has."""

    @property
    def rows(self) -> Rows:
        """All rows, the datasets behind each other: what the numbers of `epoch_order` count."""
        return self.parts[0] if len(self.parts) == 1 else JoinedRows(self.parts)

    @property
    def lengths(self) -> list[int]:
        """Rows of each."""
        return [len(part) for part in self.parts]

    def take(self, numbers: np.ndarray) -> Mixture:
        """Some rows of the mixture, by their numbers over all datasets."""
        borders = np.cumsum([0, *self.lengths])
        inner = [numbers[(numbers >= low) & (numbers < high)] - low for low, high in pairwise(borders)]
        parts = tuple(SelectedRows(part, index.tolist()) for part, index in zip(self.parts, inner, strict=True))
        return Mixture(parts=parts, weights=self.weights)

    def hold_out(self, count: int, seed: int) -> tuple[Mixture, Mixture]:
        """The mixture without `count` rows, drawn from all alike, and these rows. Raises `ConfigError` as `splits.hold_out` does."""
        train, held = hold_out(self.rows, count, seed)
        return self.take(train), self.take(held)


def epoch_shares(lengths: Sequence[int], weights: Sequence[float] | None = None) -> list[int]:
    """How many rows of each dataset an epoch has."""
    if weights is None:
        return list(lengths)
    total, whole = sum(lengths), sum(weights)
    return [max(1, round(total * weight / whole)) if length else 0 for length, weight in zip(lengths, weights, strict=True)]


def epoch_order(
    lengths: Sequence[int], weights: Sequence[float] | None = None, *, seed: int, epoch: int, shuffle: bool = True
) -> np.ndarray:
    """The rows of an epoch in the order in which they are trained, numbered over the datasets behind each other.

    It is a function of its arguments: nothing but the epoch and the place in it has to be kept to go on.

    Args:
        lengths: rows of each dataset.
        weights: their shares, in proportion to each other; None gives each row once.
        seed: of the run.
        epoch: counted from 0.
        shuffle: false takes each dataset as it stands, and spreads the datasets evenly over the epoch where there are weights; without
            weights they follow each other.

    Returns: int64.
    """
    shares = epoch_shares(lengths, weights)
    starts = np.cumsum([0, *lengths])[:-1]
    drawn = [
        start + _passes(length, epoch * share, share, (seed, number), shuffle)
        for number, (start, length, share) in enumerate(zip(starts, lengths, shares, strict=True))
        if share
    ]
    joined = np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)
    if shuffle:
        return joined[np.random.default_rng([_EPOCH, seed, epoch]).permutation(len(joined))]
    if weights is None:
        return joined
    times = np.concatenate([(np.arange(share) + 0.5) / share for share in shares if share])
    return joined[np.argsort(times, kind="stable")]


def _passes(length: int, start: int, count: int, seed: tuple[int, int], shuffle: bool) -> np.ndarray:
    """Rows [start, start + count) of a dataset that is gone through again and again, each pass in an order of its own."""
    first, last = start // length, (start + count - 1) // length
    orders = [
        np.random.default_rng([_PASS, *seed, number]).permutation(length) if shuffle else np.arange(length)
        for number in range(first, last + 1)
    ]
    found: np.ndarray = np.concatenate(orders)[start - first * length :][:count]
    return found.astype(np.int64)
