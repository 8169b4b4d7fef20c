"""Entropy: a bonus, its adaptive coefficient, and training only the tokens where the policy was undecided."""

from __future__ import annotations

import numpy as np


def adapted_entropy_coefficient(coefficient: float, entropy: float, target: float, delta: float, least: float, most: float) -> float:
    """The next step's coefficient: `delta` more while the entropy (nats a token) is below the target, `delta` less above it.

    Source: Skywork-OR1, He et al. 2025, arXiv:2505.22312, eq. 3.2.
    """
    step = delta if entropy < target else -delta if entropy > target else 0.0
    return min(most, max(least, coefficient + step))


def highest(entropies: np.ndarray, share: float) -> np.ndarray:
    """[tokens] factors: 0 below the (1 - share) quantile of the entropies; above it all / kept, so that a token mean is over the kept ones.

    Source: Wang et al. 2025, arXiv:2506.01939, eq. 6 (the paper trains the top 20%).
    """
    if share >= 1 or not len(entropies):
        return np.ones(len(entropies))
    keep = entropies >= np.quantile(entropies, 1 - share)
    return np.asarray(keep * (len(entropies) / keep.sum()), dtype=np.float64)


def needed(entropies: np.ndarray, target: float) -> np.ndarray:
    """[tokens] 1 where an adaptive bonus counts: in every token of a step whose mean entropy is not above the target, else 0.

    Source: Skywork-OR1, He et al. 2025, arXiv:2505.22312, eq. 3.2; the entropy is that of the step itself, not of the one before.
    """
    wanted = len(entropies) > 0 and float(entropies.mean()) <= target
    return np.full(len(entropies), float(wanted))
