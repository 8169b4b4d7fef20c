"""Packing: rows of many rollouts as one row without padding, cut into micro-batches that every rank has the same number of.

Rows of one group that start alike share that start: a token's hidden state depends on what stands before it and on nothing else, so
the common prompt of a group is computed once for each micro-batch, whatever the group's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentrl.learner.attention import Segments
from agentrl.learner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.learner.samples import Sample

CACHE_BYTES = 2 << 20
"""On a CPU a micro-batch is kept so small that a layer's widest activation stays in a core's cache, which made a step of a model of 0.9 M
parameters 8% faster than micro-batches of 10,000 tokens."""

CPU_TOKENS = 2048
"""Tokens of a micro-batch on a CPU where the cache would hold less than half of that. Products are at full speed there; more would cost
memory alone."""

FINE_MICRO_BATCHES = 2
"""Micro-batches at the end of a step that lanes cut in two, so that none waits long for the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Rows of some samples as one row of distinct tokens, on the learner's device."""

    ids: torch.Tensor
    """[tokens] int64."""
    positions: torch.Tensor
    """[tokens] int64: place of each token in its row."""
    segments: Segments
    sources: torch.Tensor
    """[trained] int64: the token whose hidden state predicts each target."""
    targets: torch.Tensor
    """[trained] int64, sample after sample, row after row."""
    places: tuple[np.ndarray, ...] = ()
    """For each row of each sample, [length] int64: where its tokens stand."""
    noise: torch.Tensor | None = None
    """[tokens, width] added to their embeddings."""


class Prefixes:
    """How many tokens each row of each sample shares with the rows before it in its group."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._first_row: list[int] = []
        """For each sample the place of its first row in its group."""
        self._shared: list[list[np.ndarray]] = []
        """For each sample and row, [earlier rows of the group]: length of the common start."""
        by_group: dict[int, list[np.ndarray]] = {}
        for sample in samples:
            rows = by_group.setdefault(sample.group, [])
            self._first_row.append(len(rows))
            rows.extend(sample.rows)
        shared = {group: _common_starts(rows) for group, rows in by_group.items()}
        for sample, first in zip(samples, self._first_row, strict=True):
            own = shared[sample.group][first : first + len(sample.rows)]
            self._shared.append([np.zeros_like(starts) for starts in own] if sample.alone else own)

    def longest(self, sample: int, row: int, since: int) -> tuple[int, int]:
        """The longest common start with a row that lies at `since` or later in the group, and that row's place; (0, -1) if none."""
        candidates = self._shared[sample][row][since:]
        if not len(candidates):
            return 0, -1
        best = int(candidates.argmax())
        return int(candidates[best]), since + best

    def first_row(self, sample: int) -> int:
        """Place of the sample's first row in its group."""
        return self._first_row[sample]


def _common_starts(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each row, [earlier rows]: length of the start that both have."""
    width = max(map(len, rows))
    table = np.empty((len(rows), width + 1), dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
        table[index, len(row) :] = -1 - index  # equal to nothing in another row, so a difference is always found
    return [(table[:index] != table[index]).argmax(axis=1) for index in range(len(rows))]


def micro_batches(samples: Sequence[Sample], *, max_tokens: int, multiple_of: int) -> list[list[int]]:
    """Cut samples, in order, into micro-batches of about equal size, given as places in `samples`.

    A micro-batch holds at most `max_tokens` packed tokens, or one sample. Their number is a multiple of `multiple_of` where there are
    as many samples; a caller with ranks to keep in step fills up with empty ones.
    """
    prefixes = Prefixes(samples)
    groups = np.array([sample.group for sample in samples])
    tokens = np.array([sample.num_tokens for sample in samples])
    packed = np.bincount(groups, packed_sizes(samples, prefixes, range(len(samples))))
    costs = tokens * (packed / np.maximum(np.bincount(groups, tokens), 1))[groups]  # what a group shares, shared out
    ends = np.cumsum(costs)
    middles, total = ends - costs / 2, float(ends[-1])
    count = math.ceil(total / max_tokens)
    while True:
        count = min(len(samples), math.ceil(count / multiple_of) * multiple_of)
        part = np.minimum((middles / total * count).astype(int), count - 1)
        batches = [np.flatnonzero(part == index).tolist() for index in range(count)]
        batches = [batch for batch in batches if batch]
        largest = max((sum(packed_sizes(samples, prefixes, batch)) for batch in batches if len(batch) > 1), default=0)
        if largest <= max_tokens:
            return batches
        if count == len(samples):
            return [[place] for place in range(count)]
        count += max(1, count // 8)


def dealt(
    units: Sequence[Sequence[Sample]], most: int, model: Any, device: torch.device, *, rank: int, ranks: int, lanes: bool
) -> list[list[int]]:
    """A rank's micro-batches, as places in `units`, whose samples stay together.

    Args:
        units: samples of one group each.
        most: packed tokens of a micro-batch.
        model: configuration of the model.
        device: where it computes.
        rank: whose micro-batches.
        ranks: how many there are; each has the same number, of like sizes, and an empty one fills up.
        lanes: whether threads take turns on them, so that small ones are wanted at the end.
    """
    whole = [unit[0] if len(unit) == 1 else _joined(unit) for unit in units]
    batches = micro_batches(whole, max_tokens=micro_batch_tokens(most, model, device), multiple_of=ranks)
    batches.sort(key=lambda batch: -sum(whole[place].num_tokens for place in batch))
    if lanes:
        return finer_end(batches)
    return (batches + [[]] * (-len(batches) % ranks))[rank::ranks]


def _joined(unit: Sequence[Sample]) -> Sample:
    """Samples as one, for their sizes."""
    return replace(
        unit[0],
        rows=tuple(row for sample in unit for row in sample.rows),
        sources=tuple(places for sample in unit for places in sample.sources),
        targets=np.concatenate([sample.targets for sample in unit]),
        sampler_logprobs=np.concatenate([sample.sampler_logprobs for sample in unit]),
    )


def finer_end(batches: Sequence[list[int]]) -> list[list[int]]:
    """The same micro-batches, the last ones cut in two: lanes that take turns on small pieces end together."""
    result = list(batches[:-FINE_MICRO_BATCHES])
    for batch in batches[-FINE_MICRO_BATCHES:]:
        half = math.ceil(len(batch) / 2)
        result += [part for part in (batch[:half], batch[half:]) if part]
    return result


def micro_batch_tokens(most: int, model: Any, device: torch.device) -> int:
    """Tokens of a micro-batch: at most `most`, and on a CPU what is fastest for a model of this configuration."""
    width = getattr(model.get_text_config(), "intermediate_size", None)
    if device.type != "cpu" or not isinstance(width, int):
        return most
    cached = CACHE_BYTES // (4 * width)
    return min(most, cached if cached >= CPU_TOKENS // 2 else CPU_TOKENS)


def packed_sizes(samples: Sequence[Sample], prefixes: Prefixes, batch: Sequence[int]) -> list[int]:
    """Tokens that each sample of a micro-batch adds to it."""
    since: dict[int, int] = {}
    sizes = []
    for index in batch:
        sample = samples[index]
        start = since.setdefault(sample.group, prefixes.first_row(index))
        sizes.append(sum(len(row) - prefixes.longest(index, place, start)[0] for place, row in enumerate(sample.rows)))
    return sizes


def pack(samples: Sequence[Sample], device: torch.device, *, ragged: bool = False) -> Pack:
    """Lay the rows of some samples out as one row.

    Args:
        samples: those of one group stand together.
        device: where the tensors go.
        ragged: the attention kernel there takes segments of any lengths.
    """
    prefixes = Prefixes(samples)
    tokens = _places(samples, prefixes)
    num_tokens = 1 + max(int(places.max()) for sample in tokens for places in sample)
    ids, positions = np.empty(num_tokens, dtype=np.int64), np.empty(num_tokens, dtype=np.int64)
    sources = []
    for sample, rows in zip(samples, tokens, strict=True):
        for row, places, source in zip(sample.rows, rows, sample.sources, strict=True):
            ids[places] = row
            positions[places] = np.arange(len(row))
            sources.append(places[source])
    return Pack(
        ids=on_device(ids, device),
        positions=on_device(positions, device),
        segments=Segments.of([places for rows in tokens for places in rows], num_tokens, device, ragged=ragged),
        sources=on_device(np.concatenate(sources), device),
        targets=on_device(np.concatenate([sample.targets for sample in samples]), device),
        places=tuple(places for rows in tokens for places in rows),
    )


def _places(samples: Sequence[Sample], prefixes: Prefixes) -> list[list[np.ndarray]]:
    """For each row of each sample, [length] int64: where its tokens stand in the pack."""
    result: list[list[np.ndarray]] = [[] for _ in samples]
    if all(size == sample.num_tokens for size, sample in zip(packed_sizes(samples, prefixes, range(len(samples))), samples, strict=True)):
        return _longest_first(samples)
    since: dict[int, int] = {}
    laid: dict[int, list[np.ndarray]] = {}
    end = 0
    for index, sample in enumerate(samples):
        start = since.setdefault(sample.group, prefixes.first_row(index))
        earlier = laid.setdefault(sample.group, [])
        for place, row in enumerate(sample.rows):
            shared, other = prefixes.longest(index, place, start)
            fresh = np.arange(end, end + len(row) - shared)
            end += len(fresh)
            places = np.concatenate([earlier[other - start][:shared], fresh]) if shared else fresh
            earlier.append(places)
            result[index].append(places)
    return result


def _longest_first(samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """Places of rows that share nothing: in the order of the attention's calls, so that it finds its slots without a copy."""
    rows = [(len(row), index, place) for index, sample in enumerate(samples) for place, row in enumerate(sample.rows)]
    result = [[np.empty(0, dtype=np.int64)] * len(sample.rows) for sample in samples]
    end = 0
    for length, index, place in sorted(rows, key=lambda row: -row[0]):
        result[index][place] = np.arange(end, end + length)
        end += length
    return result
