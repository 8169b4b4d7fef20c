"""Tasks made on demand: a lazy sequence whose rows are drawn from a random stream of their own."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.environment import Split
from agentrl.envs.lazy_rows import LazyRows

EVAL_SHARE = 10
"""One task in this many belongs to the evaluation split."""


def split_of(key: str) -> Split:
    """The split that a task belongs to, by a hash of what makes it the same task; so no split can leak into the other."""
    return "eval" if zlib.crc32(key.encode()) % EVAL_SHARE == 0 else "train"


class Procedural(LazyRows):
    """`size` rows, each drawn when it is asked for and the same in every process.

    Args:
        draw: makes a row and its key from a random stream; rows with equal keys are the same task.
        split: rows are redrawn until their key belongs to it.
        size: number of rows.
        name: seeds the streams, so give the environment's name and arguments.
    """

    def __init__(self, draw: Callable[[random.Random], tuple[str, Mapping[str, Any]]], *, split: Split, size: int, name: str) -> None:
        self._draw, self._split, self._size, self._name = draw, split, size, name

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Mapping[str, Any]:
        """Draw a row."""
        stream = random.Random(f"{self._name}/{self._split}/{index}")
        while True:
            key, row = self._draw(stream)
            if split_of(key) == self._split:
                return row
