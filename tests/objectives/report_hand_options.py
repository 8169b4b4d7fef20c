"""More of `report_hand`: corrections and options, each on GRPO unless its name says otherwise."""

from __future__ import annotations

import dataclasses
from math import log, sqrt

import numpy as np
from report_hand import PLAY_A, PLAY_B, R1, R2, R3, U2, U3, W1, W2, W3, WITH_START, A, Hand

PLAIN = ((-1.2 * A - R2 * A) / 2 + 0.8 * A) / 2
"""GRPO's own loss of the two rollouts."""


def tis() -> Hand:
    # min(start / sampler, 1.1) times the clipped loss of policy / start, of which 4/3 is clipped at 1.2.
    return Hand(loss=((-1.1 * 1.2 * A - W2 * U2 * A) / 2 + W3 * U3 * A) / 2, step=WITH_START, options=one("tis", max=1.1))


def sequence_tis() -> Hand:
    # Products of start / sampler: A 81/80, B 11/14.
    loss = (1.01 * (-1.2 * A - U2 * A) / 2 + W3 * U3 * A) / 2
    return Hand(loss=loss, step=WITH_START, options=one("sequence_tis", max=1.01))


def icepop() -> Hand:
    # 11/14 lies below 0.8.
    return Hand(loss=((-W1 * 1.2 * A - W2 * U2 * A) / 2 + 0.0) / 2, step=WITH_START, options=one("icepop", min=0.8))


def sequence_mask_product() -> Hand:
    # 81/80 is out. What is kept has the ratio policy / sampler, as without the mask.
    return Hand(loss=(0.0 + 0.8 * A) / 2, step=WITH_START, options=one("sequence_mask", max=1.01))


def sequence_mask_geometric() -> Hand:
    # sqrt(81/80) is in, 11/14 is out.
    options = one("sequence_mask", measure="geometric", min=0.9, max=1.01)
    return Hand(loss=((-1.2 * A - R2 * A) / 2 + 0.0) / 2, step=WITH_START, options=options)


def off_policy_mask() -> Hand:
    # B has A < 0, and log(0.28 / 0.22) = 0.24 nats a token.
    kept = Hand(loss=PLAIN, step=WITH_START, options=one("off_policy_mask", threshold=0.25))
    loss = ((-1.2 * A - R2 * A) / 2 + 0.0) / 2
    return Hand(loss=loss, step=WITH_START, options=one("off_policy_mask", threshold=0.24), also=(kept,))


def veto() -> Hand:
    # B has a token at 11/14; A's 9/10 takes the whole of A.
    both = Hand(loss=0.0, step=WITH_START, options=one("veto", below=0.95))
    return Hand(loss=((-1.2 * A - R2 * A) / 2 + 0.0) / 2, step=WITH_START, options=one("veto", below=0.8), also=(both,))


def ratio_cap() -> Hand:
    # A1's 9/8 is out.
    return Hand(loss=((0.0 - R2 * A) / 2 + 0.8 * A) / 2, step=WITH_START, options=one("ratio_cap", max=1.1))


def one(name: str, **options: object) -> dict[str, object]:
    return {"corrections": [{"name": name, **options}]}


def kl(estimator: str, *, weighted: bool) -> Hand:
    """0.1 times the estimate, mean over rollouts of token means, beside GRPO's loss."""

    def estimate(policy: float, reference: float) -> float:
        d = log(policy / reference)
        return {"k1": d, "k2": d * d / 2, "k3": reference / policy - 1 + d}[estimator]

    of_a1, of_a2, of_b = estimate(0.6, 0.5), estimate(0.3, 0.2), estimate(0.2, 0.3)
    if weighted:
        of_a1, of_a2, of_b = R1 * of_a1, R2 * of_a2, R3 * of_b
    options = {"beta": 0.1, "kl_estimator": estimator, "kl_correction": weighted}
    return Hand(loss=PLAIN + 0.1 * ((of_a1 + of_a2) / 2 + of_b) / 2, options=options)


def kl_in_reward() -> Hand:
    # R_A - R_B = 1 - 0.1 (log(0.4 / 0.5) + log(0.4 / 0.2)) + 0.1 log(0.28 / 0.3); its half over its std, which is it / sqrt(2).
    difference = 1 - 0.1 * (log(0.4 / 0.5) + log(0.4 / 0.2)) + 0.1 * log(0.28 / 0.3)
    a = difference / 2 / (difference / sqrt(2) + 1e-4)
    options = {"beta": 0.1, "kl_in": "reward", "kl_estimator": "k1"}
    return Hand(loss=((-1.2 * a - R2 * a) / 2 + 0.8 * a) / 2, advantages=(a, a, -a), options=options)


def entropy_bonus() -> Hand:
    return Hand(loss=PLAIN - 0.01 * ((0.9 + 0.8) / 2 + 0.7) / 2, options={"entropy_coef": 0.01})


def adaptive_entropy() -> Hand:
    # After a step at 1.5 nats, below the target of 2, the coefficient has grown from 0.01 to 0.015; at the target it stays. This step's
    # entropies have a mean of 0.8: above a target of 0.75 there is no bonus.
    bonus = ((0.9 + 0.8) / 2 + 0.7) / 2
    at = Hand(loss=PLAIN - 0.01 * bonus, options={"after": {"entropy": 2.0}})
    above = Hand(loss=PLAIN, options={"entropy_target": 0.75, "after": {"entropy": 0.7}})
    return Hand(loss=PLAIN - 0.015 * bonus, options={"after": {"entropy": 1.5}}, also=(at, above))


def top_entropy() -> Hand:
    # The upper half begins at the median, 0.8: A1 and A2 of three tokens are kept, and count 3/2.
    return Hand(loss=(3 / 2 * (-1.2 * A - R2 * A) / 2 + 0.0) / 2, options={"top_entropy": 0.5})


def turn_discount() -> Hand:
    # A's turns gave 0.25 and 0.75: returns 0.25 + 0.75 / 2 = 0.625, and 0.75. B's only turn gave 0. Baseline (0.625 + 0) / 2.
    # A is as far from it as the root mean square of its turns' 0.3125 and 0.4375.
    size = sqrt((0.3125**2 + 0.4375**2) / 2 + 0.3125**2) + 1e-4
    a1, a2, b = (0.625 - 0.3125) / size, (0.75 - 0.3125) / size, -0.3125 / size
    loss = ((-1.2 * a1 - R2 * a2) / 2 - 0.8 * b) / 2
    return Hand(loss=loss, advantages=(a1, a2, b), options={"turn_discount": 0.5})


def normalize_then_sum() -> Hand:
    # right: 1 against 0, standing A; style: 0.8 against 0.2, standing 0.3 / (0.6 / sqrt(2) + 1e-4). Their sum, then again over the batch.
    total = A + 0.3 / (0.6 / sqrt(2) + 1e-4)
    a = total / (total * sqrt(2) + 1e-4)
    return Hand(
        loss=((-1.2 * a - R2 * a) / 2 + 0.8 * a) / 2,
        advantages=(a, a, -a),
        options={"reward_aggregation": "normalize_then_sum", "reward_weights": None},
    )


def scale_batch() -> Hand:
    # A second group of equal rewards 0.5 counts in the spread: sqrt((1/4 + 1/4 + 0 + 0) / 3).
    a = 0.5 / (sqrt(0.5 / 3) + 1e-4)
    level = [dataclasses.replace(play, reward=0.5, turn_rewards=()) for play in (PLAY_A, PLAY_B)]
    loss = ((-1.2 * a - R2 * a) / 2 + 0.8 * a) / 4
    return Hand(loss=loss, advantages=(a, a, -a, 0, 0, 0), step=[[PLAY_A, PLAY_B], level], options={"scale_rewards": "batch"})


def leave_one_out() -> Hand:
    # Each against the other's reward: 1 - 0 and 0 - 1.
    options = {"baseline": "leave_one_out", "scale_rewards": "none"}
    return Hand(loss=((-1.2 - R2) / 2 + 0.8) / 2, advantages=(1, 1, -1), options=options)


def delta() -> Hand:
    # B drawn at 0.1: r = 2, beyond delta; its loss is 1.5 A, where the clip alone would leave 2 A.
    far = dataclasses.replace(PLAY_B, sampler=np.log([0.1]))
    free = Hand(loss=((-1.2 * A - R2 * A) / 2 + 2 * A) / 2, step=[[PLAY_A, far]], options={"delta": None})
    return Hand(loss=((-1.2 * A - R2 * A) / 2 + 1.5 * A) / 2, step=[[PLAY_A, far]], options={"delta": 1.5}, also=(free,))


def overlong() -> Hand:
    # Limit 3, cache 2: A, of 2 tokens, loses (3 - 2 - 2) / -2 = 0.5; B, of 1, nothing.
    a = 0.25 / (0.5 / sqrt(2) + 1e-4)
    options = {"overlong_length": 3, "overlong_cache": 2}
    return Hand(loss=(-1.28 * a - R2 * a + 0.8 * a) / 3, advantages=(a, a, -a), options=options)


def batch_baseline() -> Hand:
    # Rewards 1, 0 and 0.5, 0.5: the mean of all is 1/2.
    level = [dataclasses.replace(play, reward=0.0, turn_rewards=()) for play in (PLAY_A, PLAY_B)]
    # Rewards 1, 0, 0, 0: mean 1/4.
    of_a = ((-1.2 - R2) / 2) * 0.75 + ((-R1 - 0.8) / 2) * -0.25
    loss = (of_a + 2 * 0.8 * 0.25) / 4
    options = {"baseline": "batch", "scale_rewards": "none"}
    advantages = (0.75, 0.75, -0.25, -0.25, -0.25, -0.25)
    return Hand(loss=loss, advantages=advantages, step=[[PLAY_A, PLAY_B], level], options=options)
