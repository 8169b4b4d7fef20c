"""What a cell of the report says, and how numbers are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike

EXACT = 1e-12
"""Bound of the relative error of what is computed twice in float64."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The outcome of a check."""

    status: str
    """ok, FAIL, or none where there is nothing to compare with; `note` then says why."""
    error: float | None = None
    note: str = ""


def gap(found: ArrayLike, expected: ArrayLike) -> float:
    """Relative L2 distance; absolute where what is expected is 0; infinite where shapes or finiteness differ."""
    left, right = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if left.shape != right.shape or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return math.inf
    size = float(np.linalg.norm(right.ravel()))
    return float(np.linalg.norm((left - right).ravel())) / (size or 1.0)


def verdict(gaps: Iterable[float], *, bound: float = EXACT, note: str = "") -> Cell:
    """A cell of the largest gap; no gap at all is a failure."""
    worst = max(gaps, default=math.inf)
    return Cell(status="ok" if worst <= bound else "FAIL", error=worst, note=note)


def reason(note: str) -> Cell:
    return Cell(status="none", note=note)
