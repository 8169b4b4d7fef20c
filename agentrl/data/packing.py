"""Rows put together into sequences of a fixed length, each row seeing itself alone.

    bfd         best-fit decreasing: the longest rows first, each into the fullest sequence that still holds it (Johnson 1973; Ding et al.
                2024, arXiv:2404.10830)
    bfd_split   the same, after rows that are too long are cut into pieces of the full length and a rest
    wrapped     all rows as one stream that is cut wherever a sequence is full

The learner packs the rows of a step anyway and merges nothing across them, so this changes what a step consists of and not what a token's
loss is. A piece of a row that was cut begins without what stood before it, and its first token is not trained.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.data.table import Examples, Slice

Packing = Literal["none", "bfd", "bfd_split", "wrapped"]
SPLITS = ("bfd_split", "wrapped")
"""Ways of packing that cut rows, so that none is too long."""


def packed(examples: Examples, packing: Packing, length: int | None) -> Examples:
    """The rows as packed sequences; as they are for `none`.

    Args:
        examples: of one text each.
        packing: how.
        length: of a sequence, in tokens.

    Raises `ConfigError` without a length, and for rows that have a weight or a teacher of their own, which a sequence could not keep apart.
    """
    if packing == "none":
        return examples
    if length is None:
        raise ConfigError(f"data.packing is {packing}, and sequences have no length: set data.max_length")
    own = [name for name in ("weight", "teacher") if name in examples.part_names]
    if own:
        raise ConfigError(f"data.packing is {packing}, and the rows have a `{own[0]}` each: set data.packing=none, or leave the column out")
    lengths = examples.text_lengths
    if packing == "wrapped":
        sequences = _wrapped(lengths, length)
    else:
        pieces = _pieces(lengths, length)
        bins = best_fit([end - start for _, start, end in pieces], length)
        sequences = [[pieces[at] for at in places] for places in bins]
    kept = [left for sequence in sequences if (left := [piece for piece in sequence if examples.is_trained(piece)])]
    tokens = sum(end - start for sequence in kept for _, start, end in sequence)
    fill = tokens / (len(kept) * length) if kept else 0.0
    return examples.packed(kept, {"data/sequences": float(len(kept)), "data/fill": fill})


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of `lengths` in bins that hold `capacity` each: best-fit decreasing, ties in the order in which they stand."""
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the keys of `by_space`, in order
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        need = lengths[place]
        at = bisect_left(spaces, need)
        if at == len(spaces):
            number, left = len(bins), capacity - need
            bins.append([place])
        else:
            space = spaces[at]
            number, left = by_space[space].pop(), space - need
            bins[number].append(place)
            if not by_space[space]:
                del by_space[space], spaces[at]
        if left:
            if left not in by_space:
                insort(spaces, left)
            by_space.setdefault(left, []).append(number)
    return bins


def _pieces(lengths: np.ndarray, most: int) -> list[Slice]:
    """Each row, cut where it is longer than a sequence."""
    return [
        (row, start, min(start + most, length)) for row, length in enumerate(lengths.tolist()) for start in range(0, max(length, 1), most)
    ]


def _wrapped(lengths: np.ndarray, most: int) -> list[list[Slice]]:
    sequences: list[list[Slice]] = [[]]
    space = most
    for row, length in enumerate(lengths.tolist()):
        start = 0
        while start < length:
            if not space:
                sequences.append([])
                space = most
            end = min(length, start + space)
            sequences[-1].append((row, start, end))
            space -= end - start
            start = end
    return sequences
