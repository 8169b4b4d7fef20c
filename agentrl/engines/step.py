"""One forward pass of a mixed batch: a token for each request that is decoding, and the new tokens of those that join.

All tokens lie flat, one after the other, so that every linear layer sees one matrix; only attention knows about requests, through the
parts of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.engines.attention import Attention, DecodePart, PrefillPart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.engines.kv import KVCache

PAD_RATIO = 0.75
"""Requests share a rectangle when the shortest has at least this share of the longest's new tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass."""

    ids: torch.Tensor
    """[tokens] int64."""
    positions: torch.Tensor
    """[tokens] int64."""
    parts: tuple[DecodePart | PrefillPart, ...]
    wanted: torch.Tensor | None
    """[logits] int64: tokens after which a next one is sampled; None means after each. May be empty, and may repeat."""

    def attend(self, index: int, query: torch.Tensor, new: torch.Tensor, how: Attention) -> torch.Tensor:
        """Put new keys and values into the cache and attend.

        Args:
            index: of the layer.
            query: [tokens, kv heads, queries per kv head, dim].
            new: [tokens, kv heads, 2 (key, value), dim].
            how: the layer's attention.

        Returns: [tokens, kv heads, queries per kv head, dim].
        """
        results = []
        for part in self.parts:
            layer = part.pool.layers[index]
            added = new[part.start : part.stop]
            flat = layer.view(-1, layer.shape[-1])
            flat.index_copy_(0, part.targets(layer), added.reshape(-1, layer.shape[-1]))
            results.append(part.attend(layer, query[part.start : part.stop], added, how))
        return results[0] if len(results) == 1 else torch.cat(results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """New tokens of one request: positions [start, stop) of slot `slot`."""

    slot: int
    start: int
    stop: int


def plan_step(
    cache: KVCache,
    tokens: np.ndarray,
    lengths: np.ndarray,
    decoding: Sequence[int],
    segments: Sequence[Segment],
    twins: dict[int, list[int]],
    *,
    sample: bool = True,
) -> tuple[Step, np.ndarray]:
    """Lay out one forward pass.

    Args:
        cache: where every slot involved has a row.
        tokens: [slots, most tokens] int32 ids of each slot.
        lengths: [slots] tokens that each slot has in the cache: also the position of the token that a decoding one feeds.
        decoding: for each pool, how many of its first rows decode one token.
        segments: what the others add.
        twins: slots of the same prompt for a segment's slot; they sample from the same logits.
        sample: whether segments are followed by a sampled token.

    Returns: the step, and [logits] the slot that each row of its logits is for.
    """
    parts: list[DecodePart | PrefillPart] = []
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    start = 0
    for pool, count in zip(cache.pools, decoding, strict=True):
        if count:
            rows = np.array(pool.slots[:count])
            at = lengths[rows]
            parts.append(
                DecodePart(
                    pool=pool, start=start, stop=start + count, positions=_on(at, cache), shortest=int(at.min()), longest=int(at.max())
                )
            )
            ids.append(tokens[rows, at])
            positions.append(at)
            slots.append(rows)
            start += count
    wanted = list(range(start))
    for group in _rectangles(cache, segments):
        parts.append(_prefill_part(cache, group, start))
        for segment in group:
            ids.append(tokens[segment.slot, segment.start : segment.stop])
            positions.append(np.arange(segment.start, segment.stop))
            start += segment.stop - segment.start
            sharing = [segment.slot, *twins.get(segment.slot, ())] if sample else []
            wanted += [start - 1] * len(sharing)
            slots.append(np.array(sharing, dtype=np.int64))
    step = Step(
        ids=_on(np.concatenate(ids), cache),
        positions=_on(np.concatenate(positions), cache),
        parts=tuple(parts),
        wanted=_on(np.array(wanted, dtype=np.int64), cache) if segments else None,
    )
    return step, np.concatenate(slots)


def _rectangles(cache: KVCache, segments: Sequence[Segment]) -> list[list[Segment]]:
    ordered = sorted(segments, key=lambda segment: (cache.pool[segment.slot], segment.start > 0, segment.start - segment.stop))
    groups: list[list[Segment]] = []
    for segment in ordered:
        first = groups[-1][0] if groups else None
        if (
            first is not None
            and cache.pool[first.slot] == cache.pool[segment.slot]
            and (first.start > 0) == (segment.start > 0)
            and segment.stop - segment.start >= PAD_RATIO * (first.stop - first.start)
        ):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _prefill_part(cache: KVCache, group: Sequence[Segment], start: int) -> PrefillPart:
    begins = np.array([segment.start for segment in group])
    counts = np.array([segment.stop - segment.start for segment in group])
    rows = cache.row[[segment.slot for segment in group]]
    width, tokens = int(counts.max()), int(counts.sum())
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    inside = np.arange(tokens) - np.repeat(firsts, counts)
    even = tokens == width * len(group)
    spread = np.minimum(firsts[:, None] + np.arange(width), (firsts + counts - 1)[:, None]).reshape(-1)
    cells = np.repeat(np.arange(len(group)) * width, counts) + inside
    return PrefillPart(
        pool=cache.pools[cache.pool[group[0].slot]],
        start=start,
        stop=start + tokens,
        positions=_on(np.repeat(begins, counts) + inside, cache),
        rows=_on(rows, cache),
        token_rows=_on(np.repeat(rows, counts), cache),
        begins=_on(begins, cache),
        width=width,
        longest=int((begins + counts).max()) - 1,
        fresh=not begins.any(),
        spread=None if even else _on(spread, cache),
        cells=None if even else _on(cells, cache),
    )


def _on(array: np.ndarray, cache: KVCache) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(cache.device)
