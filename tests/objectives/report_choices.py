"""Tokens chosen over a whole step, and the factors of corrections, by their definitions in plain numpy: nothing here calls agentrl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from report_ours import Play, Step
    from report_papers import Factor, Mark


def _flat(step: Step, advantages: list[np.ndarray]) -> list[tuple[int, int, Play, float]]:
    """(rollout, token, play, advantage) of each token of the step."""
    plays = [play for group in step for play in group]
    return [(i, t, play, float(advantages[i][t])) for i, play in enumerate(plays) for t in range(len(play))]


def _marks(step: Step, fill: float) -> list[np.ndarray]:
    return [np.full(len(play), fill) for group in step for play in group]


def second_moment(threshold: float) -> Mark:
    """M2PO, arXiv:2510.01161, algorithm 1: the largest log(r)^2 of the outward tokens are masked until their mean is within bounds."""

    def mark(step: Step, advantages: list[np.ndarray]) -> list[np.ndarray]:
        marks = _marks(step, 1.0)
        candidates = []
        for i, t, play, a in _flat(step, advantages):
            log = play.now[t] - play.sampler[t]
            if (a > 0 and log > 0) or (a < 0 and log < 0):
                candidates.append((log**2, i, t))
        while candidates and sum(square for square, _, _ in candidates) / len(candidates) > threshold:
            largest = max(candidates)
            candidates.remove(largest)
            marks[largest[1]][largest[2]] = 0.0
        return marks

    return mark


def _covariances(step: Step, advantages: list[np.ndarray]) -> list[tuple[float, int, int]]:
    """arXiv:2505.22617, eq. 10."""
    tokens = _flat(step, advantages)
    mean_log = sum(play.now[t] for _, t, play, _ in tokens) / len(tokens)
    mean_a = sum(a for _, _, _, a in tokens) / len(tokens)
    return [((play.now[t] - mean_log) * (a - mean_a), i, t) for i, t, play, a in tokens]


def within(low: float, high: float) -> Mark:
    """All tokens whose covariance lies within bounds: Clip-Cov where its share takes all of them."""

    def mark(step: Step, advantages: list[np.ndarray]) -> list[np.ndarray]:
        marks = _marks(step, 0.0)
        for covariance, i, t in _covariances(step, advantages):
            marks[i][t] = float(low <= covariance <= high)
        return marks

    return mark


def highest(share: float) -> Mark:
    """The share of tokens with the highest covariance: KL-Cov, eq. 13."""

    def mark(step: Step, advantages: list[np.ndarray]) -> list[np.ndarray]:
        marks = _marks(step, 0.0)
        covariances = _covariances(step, advantages)
        for _, i, t in sorted(covariances, key=lambda one: -one[0])[: int(share * len(covariances))]:
            marks[i][t] = 1.0
        return marks

    return mark


def undecided(share: float) -> Mark:
    """All / kept for tokens of high entropy, 0 for the others: a mean over all is one over the kept. arXiv:2506.01939, eq. 6."""

    def mark(step: Step, advantages: list[np.ndarray]) -> list[np.ndarray]:
        entropies = sorted(value for group in step for play in group for value in play.entropy)
        place = (len(entropies) - 1) * (1 - share)
        below = int(place)
        above = min(below + 1, len(entropies) - 1)
        threshold = entropies[below] + (place - below) * (entropies[above] - entropies[below])
        kept = sum(value >= threshold for value in entropies)
        return [(play.entropy >= threshold) * len(entropies) / kept for group in step for play in group]

    return mark


def _rho(play: Play) -> np.ndarray:
    """Learner at the start of the step / sampler, of each token."""
    return np.exp((play.now if play.start is None else play.start) - play.sampler)


def truncated(high: float) -> Factor:
    """min(rho, C) of each token: TIS."""
    return lambda play, a: np.minimum(_rho(play), high)


def truncated_product(high: float) -> Factor:
    """min(product of rho, C): sequence-level TIS."""
    return lambda play, a: np.full(len(play), min(np.prod(_rho(play)), high))


def popped(low: float, high: float) -> Factor:
    """rho within [low, high], else 0: IcePop, arXiv:2510.18855, eq. 2."""
    return lambda play, a: np.where((_rho(play) >= low) & (_rho(play) <= high), _rho(play), 0.0)


def masked_sequence(low: float, high: float, *, root: bool) -> Factor:
    """1 where the rollout's product of rho, or its geometric mean, lies within [low, high]."""
    return lambda play, a: np.full(len(play), float(low <= np.prod(_rho(play)) ** (1 / len(play) if root else 1) <= high))


def masked_drift(threshold: float) -> Factor:
    """0 where A < 0 and mean of log(sampler / learner) exceeds the threshold: DeepSeek-V3.2, arXiv:2512.02556, eq. 9."""
    return lambda play, a: np.where((a < 0) & (-np.log(_rho(play)).mean() > threshold), 0.0, 1.0)


def vetoed(below: float) -> Factor:
    return lambda play, a: np.full(len(play), float(not (_rho(play) < below).any()))


def capped_tokens(most: float) -> Factor:
    return lambda play, a: np.where(_rho(play) > most, 0.0, 1.0)
