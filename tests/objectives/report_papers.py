"""Losses and gradients of policy-gradient objectives by the papers' own formulas, in plain numpy: nothing here calls agentrl.

A surrogate says of one rollout each token's loss l, and the slope of the rollout's sum of l with respect to each token's log-prob.
Weights and masks under a stop-gradient are constants in that slope. `Paper` weighs and adds up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from report_credit import Advantages
    from report_ours import Play, Step

    Surrogate = Callable[[Play, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """(rollout, advantages, what `mark` said of its tokens) -> (losses, slopes), [tokens] each."""
    Mark = Callable[[Step, list[np.ndarray]], list[np.ndarray]]
    Factor = Callable[[Play, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """A step's loss, and its gradient with respect to what the models say of each rollout: lists of [tokens]."""

    loss: float
    now: list[np.ndarray]
    entropy: list[np.ndarray]
    values: list[np.ndarray]
    divergence: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A surrogate, whose token losses are reduced to one number, with the terms beside it."""

    advantages: Advantages
    surrogate: Surrogate
    reduction: str = "sequence_mean"
    mark: Mark | None = None
    kl: tuple[float, str, bool] | None = None
    """(beta, estimator, weighted by the ratio) of a KL in the loss."""
    entropy: float = 0.0
    """Coefficient of the bonus."""
    critic: tuple[float, float] | None = None
    """(coefficient, clip) of a value loss."""
    returns: Advantages | None = None
    """Advantages before whitening, to which the start's values are added for what the critic is to predict."""

    def __call__(self, step: Step, max_tokens: int, advantages: Sequence[float] | None = None) -> Slopes:
        plays = [play for group in step for play in group]
        given = self.advantages(step) if advantages is None else [np.full(len(p), a) for p, a in zip(plays, advantages, strict=True)]
        marks = self.mark(step, given) if self.mark is not None else [np.ones(len(play)) for play in plays]
        weights = weights_of([len(play) for play in plays], self.reduction, max_tokens)
        loss, now, entropy, values = 0.0, [], [], []
        for play, own, marked, weight in zip(plays, given, marks, weights, strict=True):
            losses, slopes = self.surrogate(play, own, marked)
            total, slope = losses.sum(), slopes.copy()
            if self.kl is not None:
                beta, estimator, weighted = self.kl
                estimate, pull = kl_term(play, estimator, weighted=weighted)
                total, slope = total + beta * estimate.sum(), slope + beta * pull
            if self.entropy:
                total -= self.entropy * play.entropy.sum()
            entropy.append(np.full(len(play), -self.entropy * weight))
            value_loss, value_slope = value_term(play, own, self, step) if self.critic is not None else (0.0, np.zeros(len(play)))
            loss += weight * (total + value_loss)
            now.append(weight * slope)
            values.append(weight * value_slope)
        return Slopes(loss=float(loss), now=now, entropy=entropy, values=values)


def weights_of(lengths: list[int], reduction: str, max_tokens: int) -> list[float]:
    count, tokens = len(lengths), sum(lengths)
    return [
        {"sequence_mean": 1 / (count * length), "token_mean": 1 / tokens, "sequence_sum": 1 / count, "constant": 1 / (count * max_tokens)}[
            reduction
        ]
        for length in lengths
    ]


def anchored(play: Play, anchor: str) -> np.ndarray:
    """log(policy now / anchor) of each token; the start is the policy now in a step of one optimizer step."""
    if anchor == "start" and play.start is None:
        return np.zeros(len(play))
    return play.now - (play.sampler if anchor == "sampler" else play.start)


def clip(
    low: float, high: float | None = None, *, delta: float | None = None, anchor: str = "sampler", factor: Factor | None = None
) -> Surrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO, arXiv:1707.06347, eq. 7; delta: arXiv:2505.07291; times a correction's factor."""
    high = low if high is None else high

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = np.exp(anchored(play, anchor))
        first = r if delta is None else np.minimum(r, delta)
        loss = -np.minimum(first * a, np.clip(r, 1 - low, 1 + high) * a)
        cut = ((a > 0) & (r > 1 + high)) | ((a < 0) & (r < 1 - low)) | (False if delta is None else (a < 0) & (r > delta))
        weight = mark if factor is None else mark * factor(play, a)
        return weight * loss, weight * np.where(cut, 0.0, -r * a)

    return surrogate


def whole(low: float, high: float, *, root: bool = True, delta: float | None = None) -> Surrogate:
    """The same with one ratio a rollout: its geometric mean (GSPO, arXiv:2507.18071, eq. 5 and 7), or the product (RLOO with a clip).

    With the product the loss is one a rollout; each token is given its share, so that the rollout's mean times its length is the loss.
    """

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log = anchored(play, "sampler")
        s = np.exp(log.mean() if root else log.sum())
        first = s if delta is None else min(s, delta)
        loss = -np.minimum(first * a, np.clip(s, 1 - low, 1 + high) * a)
        cut = ((a > 0) & (s > 1 + high)) | ((a < 0) & (s < 1 - low)) | (False if delta is None else (a < 0) & (s > delta))
        # The sum of |y| equal losses of a geometric mean has the slope |y| s A / |y| at each token.
        return (loss if root else loss / len(play)), np.where(cut, 0.0, -s * a)

    return surrogate


def geometric(low: float, high: float) -> Surrogate:
    """-A (prod over t of clipped r)^(1/|y|), clipped where A pushes: GMPO, arXiv:2507.20673, eq. 4."""

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log = anchored(play, "sampler")
        cut = np.where(a > 0, log > high, log < -low)
        kept = np.where(cut, np.where(a > 0, high, -low), log)
        mean = np.prod(np.exp(kept)) ** (1 / len(play))
        return -mean * a, np.where(cut, 0.0, -mean * a)

    return surrogate


def weighted(weight: Callable[[Play, np.ndarray], np.ndarray]) -> Surrogate:
    """-sg(weight) A log policy."""

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = weight(play, a)
        return -own * a * play.now, -own * a

    return surrogate


def capped(low: float, high: float) -> Callable[[Play, np.ndarray], np.ndarray]:
    """clip(r, low, high): CISPO, arXiv:2506.13585, eq. 5; without a lower bound AIPO, arXiv:2505.24034."""
    return lambda play, a: np.clip(np.exp(anchored(play, "sampler")), low, high)


def smooth(k_pos: float = 2, lambda_pos: float = 3, k_neg: float = 3, lambda_neg: float = 2) -> Callable[[Play, np.ndarray], np.ndarray]:
    """W^k exp(lambda (1 - W)), W the ratio of the whole rollout: VESPO, arXiv:2602.10693, eq. 20."""

    def weight(play: Play, a: np.ndarray) -> np.ndarray:
        w = np.prod(np.exp(anchored(play, "sampler")))
        return np.where(a >= 0, w**k_pos * np.exp(lambda_pos * (1 - w)), w**k_neg * np.exp(lambda_neg * (1 - w)))

    return weight


def gate(tau_pos: float, tau_neg: float) -> Surrogate:
    """-f(r) A, f(x) = sigmoid(tau (x - 1)) 4 / tau; its slope in log r is 4 p (1 - p) r: SAPO, arXiv:2511.20347, eq. 5 and 6."""

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r, tau = np.exp(anchored(play, "sampler")), np.where(a > 0, tau_pos, tau_neg)
        p = 1 / (1 + np.exp(-tau * (r - 1)))
        return -4 / tau * p * a, -4 * p * (1 - p) * r * a

    return surrogate


def trusted(divergence: str, threshold: float, most: float = np.inf) -> Surrogate:
    """-M A sg(min(r, most)) log policy, M = 0 where a divergence beyond the threshold grows: DPPO, arXiv:2602.04879.

    The value is that of M A min(r, most), which is what agentrl reports.
    """

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, mu = np.exp(play.now), np.exp(play.sampler)
        distance = np.abs(p - mu) if divergence == "tv" else mu * np.log(mu / p) + (1 - mu) * np.log((1 - mu) / (1 - p))
        out = (distance > threshold) & (((a > 0) & (p > mu)) | ((a < 0) & (p < mu)))
        loss = np.where(out, 0.0, -np.minimum(p / mu, most) * a)
        return loss, loss

    return surrogate


def plain(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-M r A: M2PO, arXiv:2510.01161, eq. 5; M is the mark."""
    loss = -mark * np.exp(anchored(play, "sampler")) * a
    return loss, loss


def clip_detached(low: float, high: float) -> Surrogate:
    """PPO's loss; marked tokens have no gradient: Clip-Cov, arXiv:2505.22617, eq. 12."""
    inner = clip(low, high)

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loss, slope = inner(play, a, np.ones(len(play)))
        return loss, np.where(mark > 0, 0.0, slope)

    return surrogate


def held(coefficient: float) -> Surrogate:
    """-r A, plus coefficient |log r| on marked tokens: KL-Cov, arXiv:2505.22617, eq. 14."""

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log = anchored(play, "sampler")
        pull = mark * coefficient
        return -np.exp(log) * a + pull * np.abs(log), -np.exp(log) * a + pull * np.sign(log)

    return surrogate


def decoupled(low: float, high: float, *, most: float = np.inf, interpolated: bool = False) -> Surrogate:
    """-(prox / mu) min(u A, clip(u) A), u = policy / prox: arXiv:2110.00641, eq. 3.

    prox is the start of the step, or log-linear between sampler and policy, one step behind: A-3PO, arXiv:2512.06547.
    """

    def surrogate(play: Play, a: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prox = play.now if play.start is None else play.start
        if interpolated:
            behind = play.staleness + 1
            prox = play.sampler + (1 - 1 / behind) * (play.now - play.sampler)
        weight = np.exp(prox - play.sampler)
        u = np.exp(play.now - prox)
        loss = -np.minimum(u * a, np.clip(u, 1 - low, 1 + high) * a)
        cut = ((a > 0) & (u > 1 + high)) | ((a < 0) & (u < 1 - low))
        weight = np.where(weight > most, 0.0, weight)
        return weight * loss, weight * np.where(cut, 0.0, -u * a)

    return surrogate


def kl_term(play: Play, estimator: str, *, weighted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of KL(policy || reference), and their slopes.

    Plain (arXiv:2510.01555): k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d, d = log(policy / reference). Weighted by the ratio
    (DeepSeek-V3.2, arXiv:2512.02556, eq. 7) the slope is r d whichever it is: that of the KL itself, whose gradient is
    sum over a of policy(a) d(a) grad log policy(a).
    """
    d = play.now - play.reference
    estimate = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[estimator]
    if weighted:
        r = np.exp(anchored(play, "sampler"))
        return r * estimate, r * d
    return estimate, {"k1": np.ones(len(d)), "k2": d, "k3": 1 - np.exp(-d)}[estimator]


def value_term(play: Play, advantages: np.ndarray, paper: Paper, step: Step) -> tuple[float, np.ndarray]:
    """coefficient / 2 max((V - R)^2, (clip(V, V_start +- clip) - R)^2) of each token."""
    coefficient, bound = paper.critic
    plays = [one for group in step for one in group]
    index = next(index for index, one in enumerate(plays) if one is play)
    target = paper.returns(step)[index] + play.start_values
    free, near = play.values - target, np.clip(play.values, play.start_values - bound, play.start_values + bound) - target
    worse = free**2 >= near**2
    moved = np.abs(play.values - play.start_values) > bound
    slope = np.where(worse, free, np.where(moved, 0.0, near))
    return float(coefficient * 0.5 * np.maximum(free**2, near**2).sum()), coefficient * slope
