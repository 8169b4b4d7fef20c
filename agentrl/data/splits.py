"""Rows held out for evaluation, and rows that are trained and evaluated both."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.data.faults import RowFault
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agentrl.data.rows import Rows

_HOLD_OUT = 0xE7A1
"""Keeps this draw apart from others of the same seed."""


def digest(row: Mapping[str, Any]) -> bytes:
    """What two rows have in common if they have the same columns with the same values, in whatever order the keys stand."""
    text = json.dumps(row, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def hold_out(rows: Rows, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows to train on and of those to evaluate on, both rising.

    As many rows are drawn as are asked for, no two of the same content, and no row with the content of one of them is trained on. The draw
    depends on the seed and on which contents there are, in their order. Rows that cannot be read are left to training, which counts them.

    Args:
        rows: all of them.
        count: rows to hold out, at least 1.
        seed: of the run.

    Raises `ConfigError` where nothing would be left to train on.
    """
    contents = [_content(rows, index) for index in range(len(rows))]
    first: dict[bytes, int] = {}
    for index, content in enumerate(contents):
        if content is not None:
            first.setdefault(content, index)
    if count >= len(first):
        raise ConfigError(f"data.eval_rows is {count}, and the dataset holds {len(first)} rows that differ: leave some of them to train on")
    distinct = list(first)
    drawn = np.random.default_rng([_HOLD_OUT, seed]).permutation(len(distinct))[:count]
    held = {distinct[number] for number in drawn}
    train = [index for index, content in enumerate(contents) if content not in held]
    return np.array(train, dtype=np.int64), np.array(sorted(first[content] for content in held), dtype=np.int64)


def repeated(train: Rows, held_out: Rows) -> Iterator[tuple[int, int]]:
    """Rows of the evaluation that are trained on too, by their content: (number in `held_out`, number in `train`)."""
    trained: dict[bytes, int] = {}
    for index in range(len(train)):
        content = _content(train, index)
        if content is not None:
            trained.setdefault(content, index)
    for index in range(len(held_out)):
        content = _content(held_out, index)
        if content is not None and content in trained:
            yield index, trained[content]


def _content(rows: Rows, index: int) -> bytes | None:
    try:
        return digest(rows[index])
    except RowFault:
        return None
