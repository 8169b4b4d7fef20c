"""Losses and advantages of two rollouts of three tokens, worked out by hand: plain arithmetic from the papers' formulas.

Rollout A has two tokens and reward 1, rollout B one token and reward 0. Probabilities of the drawn tokens, A1, A2 and B1:

    policy now   0.60  0.30   0.20
    sampler      0.40  0.40   0.28      policy / sampler  r = 3/2, 3/4, 5/7
    start        0.45  0.36   0.22      start / sampler = 9/8, 9/10, 11/14; policy / start = 4/3, 5/6, 10/11
    reference    0.50  0.20   0.30
    teacher      0.50  0.60   0.35      divergence from it 0.12 0.08 0.05
    entropy      0.90  0.80   0.70
    values now   0.45  0.20   0.35      as the step began 0.40 0.50 0.10

`constant` divides by 4 tokens a rollout.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import exp, gamma, log, sqrt
from typing import Any

import numpy as np
from report_cells import Cell, gap, verdict
from report_ours import Play, Scores, Step, loss_of, prepare, slopes_of

PLAY_A = Play(
    now=np.log([0.6, 0.3]),
    sampler=np.log([0.4, 0.4]),
    reference=np.log([0.5, 0.2]),
    entropy=np.array([0.9, 0.8]),
    values=np.array([0.45, 0.2]),
    start_values=np.array([0.4, 0.5]),
    reward=1.0,
    turn=np.array([0, 1], dtype=np.int32),
    turn_rewards=(0.25, 0.0),
    parts={"right": 1.0, "style": 0.8},
    staleness=1,
    teacher=np.log([0.5, 0.6]),
    divergence=np.array([0.12, 0.08]),
)
PLAY_B = Play(
    now=np.log([0.2]),
    sampler=np.log([0.28]),
    reference=np.log([0.3]),
    entropy=np.array([0.7]),
    values=np.array([0.35]),
    start_values=np.array([0.1]),
    turn=np.array([0], dtype=np.int32),
    parts={"right": 0.0, "style": 0.2},
    staleness=1,
    teacher=np.log([0.35]),
    divergence=np.array([0.05]),
)
BOTH: Step = [[PLAY_A, PLAY_B]]
WITH_START: Step = [[dataclasses.replace(PLAY_A, start=np.log([0.45, 0.36])), dataclasses.replace(PLAY_B, start=np.log([0.22]))]]
R1, R2, R3 = 3 / 2, 3 / 4, 5 / 7
"""Policy / sampler."""
W1, W2, W3 = 9 / 8, 9 / 10, 11 / 14
"""Start / sampler."""
U1, U2, U3 = 4 / 3, 5 / 6, 10 / 11
"""Policy / start."""
A = 0.5 / (sqrt(0.5) + 1e-4)
"""GRPO's advantage of A, and minus that of B: (1 - 1/2) / (std of (1, 0) + 1e-4); the std with n - 1 is sqrt((1/4 + 1/4) / 1)."""
H_A, H_B = log(0.6 / 0.5) + log(0.3 / 0.2), log(0.2 / 0.3)
"""log(policy / reference) of the whole rollouts."""


@dataclass(frozen=True, kw_only=True)
class Hand:
    """What was worked out, and for which step and options (beside the row's own)."""

    loss: float
    advantages: tuple[float, ...] | None = None
    """Of each token."""
    slopes: tuple[float, ...] | None = None
    """Of the loss in each token's log-prob, where the value alone would not show them."""
    step: Step = field(default_factory=lambda: BOTH)
    options: dict[str, Any] = field(default_factory=dict)
    also: tuple[Hand, ...] = ()


def checked(row: dict[str, Any], hand: Hand) -> Cell:
    """The worked values against agentrl's."""
    gaps = []
    for one in (hand, *hand.also):
        prepared, scores = prepare(row | one.options, one.step), Scores.of(one.step)
        loss = loss_of(prepared, scores)
        gaps.append(gap(loss.item(), one.loss))
        if one.advantages is not None:
            gaps.append(gap(np.concatenate(prepared.advantages), one.advantages))
        if one.slopes is not None:
            gaps.append(gap(np.concatenate(slopes_of(loss, scores.now)), one.slopes))
    return verdict(gaps, note="advantages as well as the loss" if any(one.advantages for one in (hand, *hand.also)) else "")


def grpo() -> Hand:
    # A1 is clipped at 1.2; B, with A < 0, has r below 0.8, where the minimum is 0.8 A.
    return Hand(loss=((-1.2 * A - R2 * A) / 2 + 0.8 * A) / 2, advantages=(A, A, -A))


def dr_grpo() -> Hand:
    return Hand(loss=(-1.2 * 0.5 - R2 * 0.5 + 0.8 * 0.5) / (2 * 4), advantages=(0.5, 0.5, -0.5))


def bnpo() -> Hand:
    # One group: alpha = beta = 1, a flat density of 1. Two groups, of means 1/2 and 3/4 (A, A, A, B): m = 5/8, v = 1/32 with n - 1,
    # m (1 - m) / v - 1 = 6.5, a = 6.5 * 5/8, b = 6.5 * 3/8.
    alpha, beta = 1 + 6.5 * 5 / 8 / 3, 1 + 6.5 * 3 / 8 / 3
    constant = gamma(alpha + beta) / (gamma(alpha) * gamma(beta))
    half = 0.5 / (constant * 0.5 ** (alpha - 1) * 0.5 ** (beta - 1))
    quarter = 0.25 / (constant * 0.75 ** (alpha - 1) * 0.25 ** (beta - 1))
    of_a, of_b = (-1.2 - R2) / 2, 0.8
    two = Hand(
        loss=(half * of_a + half * of_b + 3 * quarter * of_a + 3 * quarter * of_b) / 6,
        advantages=(half, half, -half, *[quarter] * 6, -3 * quarter),
        step=[[PLAY_A, PLAY_B], [PLAY_A, PLAY_A, PLAY_A, PLAY_B]],
    )
    return Hand(loss=(of_a * 0.5 + of_b * 0.5) / 2, advantages=(0.5, 0.5, -0.5), also=(two,))


def dapo() -> Hand:
    return Hand(loss=(-1.28 * A - R2 * A + 0.8 * A) / 3, advantages=(A, A, -A))


def gspo() -> Hand:
    # s of A is sqrt(9/8), above 1 + 4e-4; s of B is 5/7, below 1 - 3e-4. With wider clips each token of A has half of A's slope.
    s = sqrt(9 / 8)
    free = Hand(loss=(-s * A + R3 * A) / 2, slopes=(-s * A / 4, -s * A / 4, R3 * A / 2), options={"clip_low": 0.5, "clip_high": 0.5})
    return Hand(loss=(-(1 + 4e-4) * A + (1 - 3e-4) * A) / 2, also=(free,))


gspo_token = gspo


def gmpo() -> Hand:
    # log 3/2 = 0.405 is clipped at 0.4; log 3/4 is lower and A > 0, so it stays; log 5/7 = -0.336 is within -0.4.
    return Hand(loss=(-A * exp((0.4 + log(R2)) / 2) + A * R3) / 2)


def luspo() -> Hand:
    return Hand(loss=(-(1 + 2.5e-3) * A * 2 + (1 - 2e-3) * A * 1) / 2)


def cispo() -> Hand:
    free = (-R1 * A * log(0.6) - R2 * A * log(0.3) + R3 * A * log(0.2)) / 3
    capped = (-1.25 * A * log(0.6) - 0.8 * A * log(0.3) + 0.8 * A * log(0.2)) / 3
    return Hand(loss=free, also=(Hand(loss=capped, options={"ratio_max": 1.25, "ratio_min": 0.8, "name": "cispo"}),))


def aipo() -> Hand:
    loss = (-1.25 * log(0.6) - R2 * log(0.3) + R3 * log(0.2)) * 0.5 / 3
    return Hand(loss=loss, options={"ratio_max": 1.25}, advantages=(0.5, 0.5, -0.5))


def sapo() -> Hand:
    def sigmoid(x: float) -> float:
        return 1 / (1 + exp(-x))

    of_a = (4 * sigmoid(R1 - 1) + 4 * sigmoid(R2 - 1)) / 2
    of_b = 4 / 1.05 * sigmoid(1.05 * (R3 - 1))
    return Hand(loss=(-of_a * A + of_b * A) / 2)


def vespo() -> Hand:
    # W of A is 9/8, with (k, lambda) = (2, 3); W of B is 5/7, with (3, 2).
    phi_a, phi_b = (9 / 8) ** 2 * exp(3 * (1 - 9 / 8)), (5 / 7) ** 3 * exp(2 * (1 - 5 / 7))
    return Hand(loss=(-phi_a * (log(0.6) + log(0.3)) + phi_b * log(0.2)) * 0.5 / 3, advantages=(0.5, 0.5, -0.5))


def dppo() -> Hand:
    # |0.6 - 0.4| = 0.2 > 0.15 with A > 0 and r > 1: masked. |0.3 - 0.4| and |0.2 - 0.28| are within.
    return Hand(loss=(-R2 * 0.5 + R3 * 0.5) / (2 * 4), advantages=(0.5, 0.5, -0.5))


def dppo_kl() -> Hand:
    # KL((q, 1 - q) || (p, 1 - p)): A1 0.0811 > 0.05, masked; A2 0.0226; B 0.0180.
    a1 = 0.4 * log(0.4 / 0.6) + 0.6 * log(0.6 / 0.4)
    assert a1 > 0.05 > max(0.4 * log(0.4 / 0.3) + 0.6 * log(0.6 / 0.7), 0.28 * log(0.28 / 0.2) + 0.72 * log(0.72 / 0.8))
    return Hand(loss=(-R2 * 0.5 + R3 * 0.5) / (2 * 4))


def m2po() -> Hand:
    # A1 (log(3/2)^2 = 0.164) and B (log(5/7)^2 = 0.113) are pushed outwards: their mean is above 0.12, B's alone is not.
    return Hand(loss=(0.0 - R2 * A + R3 * A) / 3, options={"threshold": 0.12}, also=(Hand(loss=-R2 * A / 3),))


def clip_cov() -> Hand:
    # Covariances: (log p - mean)(A - mean A), with mean log p = log(0.036) / 3 and mean A = A / 3.
    mean = log(0.6 * 0.3 * 0.2) / 3
    covariances = [(log(0.6) - mean) * (2 / 3 * A), (log(0.3) - mean) * (2 / 3 * A), (log(0.2) - mean) * (-4 / 3 * A)]
    assert [-0.1 < one < 0 for one in covariances] == [False, True, False]
    options = {"share": 0.34, "cov_min": -0.1, "cov_max": 0.0, "clip_low": 0.5, "clip_high": 0.6}
    # One token of three, A2, loses its gradient; its value stays.
    return Hand(loss=(-R1 * A - R2 * A + R3 * A) / 3, slopes=(-R1 * A / 3, 0.0, R3 * A / 3), options=options)


def kl_cov() -> Hand:
    # The covariances above, largest at B: |log 5/7| is added there. No clip.
    return Hand(loss=(-R1 * A - R2 * A + R3 * A + log(7 / 5)) / 3, options={"share": 0.34})


def rloo() -> Hand:
    # The KL is in the reward: R = reward - 0.05 sum of log(sampler / reference); the other one's R is the baseline.
    reward_a = 1 - 0.05 * (log(0.4 / 0.5) + log(0.4 / 0.2))
    reward_b = 0 - 0.05 * log(0.28 / 0.3)
    a = reward_a - reward_b
    # Ratios of whole rollouts: 9/8, and 5/7, below 0.8.
    return Hand(loss=(-9 / 8 * a + 0.8 * a) / 2, advantages=(a, a, -a))


def reinforce() -> Hand:
    loss = -(R1 * log(0.6) + R2 * log(0.3)) * 0.75 / 2 - R3 * log(0.2) * (-0.25) / 2
    return Hand(loss=loss, advantages=(0.75, 0.75, -0.25), options={"running_baseline": 0.25})


def a2po() -> Hand:
    # Policy's samples A and B; the reference's have rewards 1 and 0: V* = 0.5 log((exp(1 / 0.5) + exp(0 / 0.5)) / 2).
    value = 0.5 * log((exp(2) + 1) / 2)
    rivals = [dataclasses.replace(play, rival=True) for play in (PLAY_A, PLAY_B)]
    loss = ((1e-3 * H_A - (1 - value)) ** 2 + (1e-3 * H_B - (0 - value)) ** 2) / 2
    return Hand(loss=loss, advantages=(1 - value, 1 - value, -value), step=[[PLAY_A, PLAY_B, *rivals]])


def ppo() -> Hand:
    # Token rewards: -0.05 log(sampler / reference), 0.25 of the first turn after A1, and what is left of the reward at the end.
    x1 = 0.25 - 0.05 * log(0.4 / 0.5)
    x2 = 0.75 - 0.05 * log(0.4 / 0.2)
    x3 = 0.0 - 0.05 * log(0.28 / 0.3)
    a2 = x2 + 0 - 0.5
    a1 = x1 + 0.5 - 0.4 + 0.95 * a2
    a3 = x3 + 0 - 0.1
    mean = (a1 + a2 + a3) / 3
    size = sqrt(((a1 - mean) ** 2 + (a2 - mean) ** 2 + (a3 - mean) ** 2) / 2 + 1e-8)
    n1, n2, n3 = (a1 - mean) / size, (a2 - mean) / size, (a3 - mean) / size
    assert n1 > 0
    assert n2 < 0
    assert n3 < 0
    # With A < 0, A2's r of 0.75 and B's of 5/7 are below 0.8.
    policy = (-1.2 * n1 - 0.8 * n2 - 0.8 * n3) / 3
    # Returns are advantages before whitening + the values at the start. A2's value moved by -0.3, to be taken as 0.3; B's by +0.25, as 0.3.
    g1, g2, g3 = a1 + 0.4, a2 + 0.5, a3 + 0.1
    value = 0.5 * ((0.45 - g1) ** 2 + max((0.2 - g2) ** 2, (0.3 - g2) ** 2) + max((0.35 - g3) ** 2, (0.3 - g3) ** 2)) / 3
    return Hand(loss=policy + 0.1 * value, advantages=(n1, n2, n3))


def decoupled_ppo() -> Hand:
    loss = (-W1 * 1.2 * A - W2 * U2 * A + W3 * U3 * A) / 3
    masked = (0.0 - W2 * U2 * A + W3 * U3 * A) / 3
    return Hand(loss=loss, step=WITH_START, also=(Hand(loss=masked, step=WITH_START, options={"weight_max": 1.1}),))


def loglinear() -> Hand:
    # One step stale, two behind the policy that is being made: the proximal policy is the geometric mean of sampler and policy.
    v1, v2, v3 = sqrt(R1), sqrt(R2), sqrt(R3)
    assert v1 > 1.2
    return Hand(loss=(-v1 * 1.2 * A - v2 * v2 * A + v3 * v3 * A) / 3, options={"clip_low": 0.2})


def online_dpo() -> Hand:
    return Hand(loss=log(1 + exp(-0.1 * (H_A - H_B))))


def ipo() -> Hand:
    return Hand(loss=(H_A - H_B - 1 / (2 * 0.1)) ** 2)


def nash_md() -> Hand:
    chance = 1 / (1 + exp(-(1 - 0)))
    return Hand(loss=-9 / 8 * (chance - 0.5 - 0.1 * H_A) * log(0.6 * 0.3), advantages=(chance - 0.5, chance - 0.5), step=AGAINST_B)


def xpo() -> Hand:
    return Hand(loss=log(1 + exp(-0.1 * (H_A - H_B))) + 1e-5 * log(0.2), step=AGAINST_B)


AGAINST_B: Step = [[PLAY_A, dataclasses.replace(PLAY_B, rival=True)]]
