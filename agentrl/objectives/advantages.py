"""Statistics over the rewards of a group, in float64 and defined for every group, however degenerate.

Sums are exact (`math.fsum`), so that the order of members or groups changes no bit. Differences are taken from the smallest member
before the mean is, so that equal members get exactly 0 and not a rounding error that a division would blow up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import EnvironmentFailure

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

STD_EPS = 1e-4
"""Added to a standard deviation before dividing by it, as TRL does. The papers divide by the bare deviation, which blows noise up to
full size: rewards [0, 0, 0, 1e-6] would weigh as much as [0, 0, 0, 1]. Spreads far below 1e-4 fade out instead."""

MAX_REWARD = 1e300
"""Sums of larger rewards could overflow float64."""


def deviations(values: ArrayLike) -> np.ndarray:
    """Differences from the mean, [members] float64; exactly 0 where all members are equal and in a group of one.

    Raises `EnvironmentFailure` for values that are not finite or beyond `MAX_REWARD`.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return array
    low, high = float(array.min()), float(array.max())
    # Written so that NaN fails it too.
    if not (abs(low) < MAX_REWARD and abs(high) < MAX_REWARD):
        raise EnvironmentFailure(f"rewards of one group reach from {low} to {high}; they must be finite and within +-{MAX_REWARD:g}")
    offsets = array - low  # exactly 0 where all are equal
    result: np.ndarray = offsets - math.fsum(offsets) / len(array)
    return result


def sample_std(values: ArrayLike) -> float:
    """Standard deviation with Bessel's correction (ddof = 1), two passes; 0 where all are equal or fewer than two.

    ddof = 1 because the members are a sample of what the policy would answer; it is also TRL's choice. ddof = 0 would make every
    advantage larger by sqrt(n / (n - 1)): 1.41 at n = 2, 1.07 at n = 8.
    """
    return spread(deviations(values))


def spread(away: np.ndarray) -> float:
    """Root of the sum of squares of [members] deviations over members - 1; 0 where all are 0."""
    largest = float(np.abs(away).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    # Scaled by the largest deviation, so that squares neither overflow nor vanish.
    return largest * math.sqrt(math.fsum((away / largest) ** 2) / max(1, len(away) - 1))


def leave_one_out(values: ArrayLike) -> np.ndarray:
    """Each value minus the mean of the others, [members] float64; 0 in a group of one, which has no others.

    Computed as `n / (n - 1) * (value - mean)`, the same number, so that equal members get exactly 0.
    """
    away = deviations(values)
    count = len(away)
    return away * (count / (count - 1)) if count > 1 else away
