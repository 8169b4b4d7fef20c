from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentrl.errors import EnvironmentFailure
from agentrl.objectives import GroupSignals, validate
from agentrl.objectives.advantages import deviations, leave_one_out, sample_std
from agentrl.objectives.credit import compared_rewards
from agentrl.objectives.rloo import leave_one_out_advantages

REWARDS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9)


def signals(rewards, reference_kl=None):
    """A group as the learner hands it over: unscorable members (None) are left out before."""
    scored = np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
    return GroupSignals(rewards=scored, reference_kl=None if reference_kl is None else np.array(reference_kl, dtype=np.float64))


def grpo(*groups, **options):
    return compared_rewards([signals(group) for group in groups], validate({"name": "grpo", **options}))


def rloo(*groups, **options):
    return leave_one_out_advantages([signals(group) for group in groups], validate({"name": "rloo", "beta": 0, **options}))


# sqrt(1/2) / (sqrt(1/2) + 1e-4) etc.: the exact quotient, then times the eps factor std / (std + 1e-4).
# [0] + [0.95] * 7: mean 0.83125, deviations -0.83125 and 0.11875; squares 0.6909765625 + 7 * 0.0141015625 = 0.7896875; / 7 = 0.1128125;
# std 0.33587572; -0.83125 / 0.33597572 = -2.47414, 0.11875 / 0.33597572 = 0.35345.
# [0, 0, 0, 1e-6]: deviations -2.5e-7 and 7.5e-7, std 5e-7; / (5e-7 + 1e-4) = -0.0024876 and 0.0074627: noise stays small.
@pytest.mark.parametrize(
    ("rewards", "expected_grpo", "expected_rloo"),
    [
        ([0.5] * 8, [0] * 8, [0] * 8),
        ([0.1] * 3, [0] * 3, [0] * 3),  # 0.1 + 0.1 + 0.1 is not 0.3 in floating point
        ([1e15 + 0.3] * 7, [0] * 7, [0] * 7),
        ([0] + [0.95] * 7, [-2.4741372] + [0.3534482] * 7, [-0.95] + [0.95 / 7] * 7),
        ([1, 0, None, None], [0.7070068, -0.7070068], [1, -1]),
        ([0, 0, 0, 1e-6], [-0.00248756] * 3 + [0.00746269], [-1e-6 / 3] * 3 + [1e-6]),
        ([0, 1], [-0.7070068, 0.7070068], [-1, 1]),
        ([0.7], [0], [0]),
        ([0.7, None, None], [0], [0]),
        ([None, None], [], []),
        ([0, 1e9], [-0.70710678, 0.70710678], [-1e9, 1e9]),
        ([-1e299, 1e299], [-0.70710678, 0.70710678], [-2e299, 2e299]),
    ],
)
def test_degenerate_groups(rewards, expected_grpo, expected_rloo):
    for advantages, expected in ((grpo(rewards)[0], expected_grpo), (rloo(rewards)[0], expected_rloo)):
        assert advantages.dtype == np.float64
        if any(expected):
            assert advantages == pytest.approx(expected, rel=1e-6)
        else:
            assert advantages.tolist() == expected  # exactly


@pytest.mark.parametrize("rewards", [[0.0, math.nan], [0.0, math.inf], [math.inf, math.inf], [-1.7e308, 1.7e308]])
def test_rewards_that_overflow_are_refused(rewards):
    with pytest.raises(EnvironmentFailure, match="must be finite"):
        deviations(rewards)


def test_sample_std_is_bessel_corrected_and_two_pass():
    assert sample_std([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == pytest.approx(math.sqrt(32 / 7), rel=1e-15)
    # One pass (mean of squares - square of mean) loses all digits at this offset.
    assert sample_std([1e9, 1e9 + 1, 1e9 + 2]) == pytest.approx(1.0, rel=1e-12)
    assert sample_std([3.0]) == 0
    assert sample_std([1e-200, 3e-200]) == pytest.approx(math.sqrt(2) * 1e-200, rel=1e-12)


@given(REWARDS, st.randoms(use_true_random=False))
def test_the_order_of_members_changes_no_bit(rewards, random):
    order = list(range(len(rewards)))
    random.shuffle(order)
    shuffled = [rewards[index] for index in order]
    for signal in (grpo, rloo):
        assert signal(shuffled)[0].tolist() == signal(rewards)[0][order].tolist()


@given(REWARDS)
@example([0.0, math.ulp(0.0)])
def test_leave_one_out_is_the_mean_of_the_others(rewards):
    # The mean of two neighbouring denormals lies between them, where there is no number.
    near = 1e-13 * max(map(abs, rewards)) + len(rewards) * math.ulp(0.0)
    for index, value in enumerate(leave_one_out(rewards)):
        others = rewards[:index] + rewards[index + 1 :]
        assert value == pytest.approx(rewards[index] - math.fsum(others) / len(others), rel=1e-9, abs=near)


@given(REWARDS)
def test_advantages_sum_to_zero_and_are_bounded(rewards):
    advantages = grpo(rewards)[0]
    # The most that one of n members can stick out of its group: (n - 1) / sqrt(n) sample standard deviations.
    assert np.abs(advantages).max() <= (len(rewards) - 1) / math.sqrt(len(rewards)) + 1e-9
    assert abs(advantages.sum()) < 1e-9


def test_scale_none_only_centres():
    assert grpo([1, 0, 0, 0], [3, 5], scale_rewards="none")[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert grpo([1, 0, 0, 0], [3, 5], scale_rewards="none")[1].tolist() == [-1, 1]


def test_scale_batch_divides_by_the_std_of_all_rewards():
    # Rewards 0, 1, 0, 2: mean 0.75, squares 0.5625 + 0.0625 + 0.5625 + 1.5625 = 2.75, std sqrt(2.75 / 3) = 0.9574271.
    scale = math.sqrt(2.75 / 3) + 1e-4
    first, second = grpo([0, 1], [0, 2], scale_rewards="batch")
    assert first == pytest.approx([-0.5 / scale, 0.5 / scale], rel=1e-12)
    assert second == pytest.approx([-1 / scale, 1 / scale], rel=1e-12)
    equal, other = grpo([1, 1], [0, 2], scale_rewards="batch")
    assert equal.tolist() == [0, 0]
    assert other[1] > 0
    assert grpo([1, 1], [1, 1], scale_rewards="batch")[0].tolist() == [0, 0]


def test_no_groups_give_no_advantages():
    for scale in ("group", "batch", "none"):
        assert grpo(scale_rewards=scale) == []
    assert rloo(normalize_advantages=True) == []


def test_rloo_takes_the_kl_off_the_reward():
    # R = [1 - 0.5 * 0.2, 0 + 0.5 * 0.1, 0.5 - 0.5 * 0.3] = [0.9, 0.05, 0.35]
    # A = [0.9 - (0.05 + 0.35) / 2, 0.05 - (0.9 + 0.35) / 2, 0.35 - (0.9 + 0.05) / 2] = [0.7, -0.575, -0.125]
    group = signals([1, 0, 0.5], reference_kl=[0.2, -0.1, 0.3])
    advantages = leave_one_out_advantages([group], validate({"name": "rloo", "beta": 0.5}))[0]
    assert advantages == pytest.approx([0.7, -0.575, -0.125], rel=1e-12)


def test_rloo_normalizes_over_the_groups_that_compare():
    # A = [-1, 1], [-2, 2] and a group of one, which stays 0 and does not enter the std: squares 10, / 3.
    scale = math.sqrt(10 / 3) + 1e-4
    first, second, alone = rloo([0, 1], [0, 2], [5], normalize_advantages=True)
    assert first == pytest.approx([-1 / scale, 1 / scale], rel=1e-12)
    assert second == pytest.approx([-2 / scale, 2 / scale], rel=1e-12)
    assert alone.tolist() == [0]
    assert rloo([1, 1], [2, 2], normalize_advantages=True)[0].tolist() == [0, 0]
