"""Keys and values of running requests, in pools by length.

A pool holds requests of up to `capacity` tokens in dense rows, so that decoding reads whole slices: no gather, no paging. A request
that outgrows its pool moves to a longer one; so neither memory nor attention pays for the longest request in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

POOL_STEP = 32
"""Capacities grow by so many tokens, and from four times that on they double."""
FIRST_ROWS = 16
"""Rows of a pool when it is first used; they double as needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer caches for a token: `heads` keys and as many values of `dim` numbers."""

    heads: int
    dim: int


class Pool:
    """Requests of up to `capacity` tokens. Row i belongs to slot `slots[i]`."""

    def __init__(self, capacity: int, shapes: Sequence[LayerShape], *, most_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        self.slots: list[int] = []
        self._most_rows = most_rows
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._rows = 0
        self.layers: list[torch.Tensor] = []
        """A layer each: [2 (key, value), rows, kv heads, capacity, dim]. Never NaN: attention reads rows past their length, masked."""

    def append(self, slot: int) -> int:
        """Give a slot a row; returns it."""
        self.reserve(1)
        self.slots.append(slot)
        return len(self.slots) - 1

    def reserve(self, more: int) -> None:
        """Make room for so many more rows."""
        used = len(self.slots)
        if used + more <= self._rows:
            return
        rows = min(self._most_rows, max(FIRST_ROWS, 2 * self._rows, used + more))
        grown = []
        for index, shape in enumerate(self._shapes):
            layer = torch.zeros((2, rows, shape.heads, self.capacity, shape.dim), dtype=self._dtype, device=self._device)
            if used:
                layer[:, :used] = self.layers[index][:, :used]
            grown.append(layer)
        self.layers = grown
        self._rows = rows

    def remove(self, rows: Sequence[int], length: int) -> list[tuple[int, int]]:
        """Drop rows and close the gaps with the last ones; returns (slot, new row) of each that moved.

        Args:
            rows: distinct.
            length: tokens of the longest request in the pool.
        """
        gone = set(rows)
        left = len(self.slots) - len(gone)
        movers = [row for row in range(left, len(self.slots)) if row not in gone]
        holes = sorted(row for row in gone if row < left)
        if movers:
            source, target = _index(movers, self._device), _index(holes, self._device)
            for layer in self.layers:
                view = layer[:, :, :, :length]
                view[:, target] = view[:, source]
        moved = [(self.slots[mover], hole) for mover, hole in zip(movers, holes, strict=True)]
        for slot, hole in moved:
            self.slots[hole] = slot
        del self.slots[left:]
        return moved

    def release(self) -> None:
        """Give the memory of an empty pool back."""
        if not self.slots:
            self.layers, self._rows = [], 0


class KVCache:
    """The pools, and where each slot is.

    Args:
        shapes: of each layer.
        num_slots: most requests at once.
        context_length: most tokens of one request.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], *, num_slots: int, context_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.device = device
        self.token_bytes = bytes_per_token(shapes, dtype)
        self.pools = [
            Pool(capacity, shapes, most_rows=num_slots, dtype=dtype, device=device) for capacity in pool_capacities(context_length)
        ]
        self._capacities = np.array([pool.capacity for pool in self.pools])
        self.pool = np.full(num_slots, -1)
        """[slots] index of the pool that holds each; -1 where none."""
        self.row = np.full(num_slots, -1)
        """[slots] row within that pool."""

    def capacity_for(self, tokens: int) -> int:
        """Capacity of the smallest pool that holds so many tokens."""
        return int(self._capacities[np.searchsorted(self._capacities, tokens)])

    def open(self, slot: int, tokens: int) -> None:
        """Give a slot room for so many tokens; it becomes the last row of its pool."""
        index = int(np.searchsorted(self._capacities, tokens))
        self.row[slot] = self.pools[index].append(slot)
        self.pool[slot] = index

    def close(self, slots: Sequence[int], lengths: np.ndarray) -> None:
        """Take the room of slots back. `lengths`: [slots] tokens held by each slot of the cache."""
        for index in {int(self.pool[slot]) for slot in slots}:
            pool = self.pools[index]
            rows = [int(self.row[slot]) for slot in slots if self.pool[slot] == index]
            for slot, row in pool.remove(rows, int(lengths[pool.slots].max())):
                self.row[slot] = row
        self.pool[list(slots)] = -1
        self.row[list(slots)] = -1

    def make_room(self, lengths: np.ndarray) -> None:
        """Move every request that fills its pool to one where it can grow. `lengths`: [slots] tokens held."""
        for index in range(len(self.pools) - 1):
            pool = self.pools[index]
            if not pool.slots:
                continue
            slots = np.array(pool.slots)
            full = slots[lengths[slots] >= pool.capacity]
            if len(full):
                self._move_up(full.tolist(), index, lengths)

    def _move_up(self, slots: list[int], index: int, lengths: np.ndarray) -> None:
        pool, target = self.pools[index], self.pools[index + 1]
        rows = self.row[slots].tolist()
        target.reserve(len(slots))
        new_rows = [target.append(slot) for slot in slots]
        source, destination = _index(rows, self.device), _index(new_rows, self.device)
        for old, new in zip(pool.layers, target.layers, strict=True):
            new[:, destination, :, : pool.capacity] = old[:, source]
        for slot, row in pool.remove(rows, int(lengths[pool.slots].max())):
            self.row[slot] = row
        self.pool[slots] = index + 1
        self.row[slots] = new_rows

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of one slot to others."""
        pool, row = self.pools[self.pool[source]], int(self.row[source])
        for index in {int(self.pool[slot]) for slot in targets}:
            rows = _index([int(self.row[slot]) for slot in targets if self.pool[slot] == index], self.device)
            for old, new in zip(pool.layers, self.pools[index].layers, strict=True):
                new[:, rows, :, :length] = old[:, row : row + 1, :, :length]

    def read(self, slot: int, length: int) -> list[torch.Tensor]:
        """Copies of the first `length` tokens of a slot: [2, kv heads, length, dim] a layer."""
        row = int(self.row[slot])
        return [layer[:, row, :, :length].clone() for layer in self.pools[self.pool[slot]].layers]

    def write(self, slot: int, layers: Sequence[torch.Tensor], length: int) -> None:
        """Put the first `length` tokens of what `read` returned into a slot."""
        row = int(self.row[slot])
        for layer, tensor in zip(self.pools[self.pool[slot]].layers, layers, strict=True):
            layer[:, row, :, :length] = tensor[:, :, :length]

    def wipe(self, slot: int) -> None:
        """Overwrite a slot's row with zeros."""
        row = int(self.row[slot])
        for layer in self.pools[self.pool[slot]].layers:
            layer[:, row] = 0

    def allocated_bytes(self) -> int:
        """Of all pools, used or not."""
        return sum(layer.nbytes for pool in self.pools for layer in pool.layers)

    def release_empty(self) -> None:
        """Give the memory of empty pools back."""
        for pool in self.pools:
            pool.release()


def bytes_per_token(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Of one token's keys and values over all layers."""
    return sum(2 * shape.heads * shape.dim for shape in shapes) * dtype.itemsize


def pool_capacities(context_length: int) -> list[int]:
    """32, 64, 96, 128, 256, 512 and so on, the last one at least the context's length and no longer than needed."""
    capacities = []
    capacity = POOL_STEP
    while capacity < context_length:
        capacities.append(capacity)
        capacity += POOL_STEP if capacity < 4 * POOL_STEP else capacity
    return [*capacities, -(-context_length // 16) * 16]


def _index(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device)
