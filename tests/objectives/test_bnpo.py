from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import advantages, batch, group, losses, member

from agentrl.errors import ConfigError
from agentrl.objectives import validate
from agentrl.objectives.bnpo import MOST, fitted


def bnpo(*rewards, **options):
    return [one.tolist() for one in advantages("bnpo", [group(values) for values in rewards], **options)]


def test_groups_that_all_solve_or_all_fail_get_exactly_nothing():
    found = bnpo([1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0])
    assert found[:2] == [[0, 0, 0]] * 2
    assert found[2][0] > 0 > found[2][1]
    assert bnpo([1, 1], [0, 0]) == [[0, 0]] * 2  # the moments of p = 0 and p = 1 fit no Beta distribution
    assert bnpo([0.95] * 7, [0.95] * 7) == [[0.0] * 7] * 2


def test_one_group_or_equal_pass_rates_give_the_plain_difference():
    assert bnpo([1, 0, 0, 0]) == [[0.75, -0.25, -0.25, -0.25]]
    assert bnpo([1, 0], [0, 1]) == [[0.5, -0.5], [-0.5, 0.5]]
    assert bnpo([0.7]) == [[0]]
    assert bnpo() == []


@pytest.mark.parametrize("noise", [5e-17, 1e-13, 1e-10, 1e-8, 1e-6])
def test_pass_rates_that_differ_by_rounding_are_equal(noise):
    """A density fitted to a spread of 1e-13 has parameters of 1e25, of whose logarithm rounding leaves nothing: factors of 0 or 1e6."""
    found = bnpo([0, 1], [2 * noise, 1])
    assert np.abs(found).max() == pytest.approx(0.5, rel=1e-4)


def test_the_fit_by_hand():
    # p = 0.25 and 0.75: mean 0.5, variance 0.125, total = 0.25 / 0.125 - 1 = 1; a = b = 0.5; alpha = beta = 7 / 6.
    assert fitted(np.array([0.25, 0.75])) == pytest.approx((7 / 6, 7 / 6))
    # Variance 0.5 of p = 0 and 1 exceeds what a mean of 0.5 allows: a and b would be negative.
    assert fitted(np.array([0.0, 1.0])) == (1, 1)
    assert fitted(np.array([0.4])) == (1, 1)
    assert fitted(np.array([])) == (1, 1)
    assert fitted(np.array([1.0, 1.0, 1.0])) == (1, 1)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_binary_rewards_keep_their_sign_are_bounded_and_forget_their_order(solved, draw):
    rewards = [[1.0] * count + [0.0] * (8 - count) for count in solved]
    found = bnpo(*rewards)
    for values, advantage in zip(rewards, found, strict=True):
        away = np.array(values) - np.mean(values)
        assert (np.sign(advantage) == np.sign(away)).all()
        assert np.abs(advantage).max() <= MOST
        assert math.fsum(advantage) == pytest.approx(0, abs=1e-9 * max(1.0, np.abs(advantage).max()))
    order = draw.sample(range(len(rewards)), len(rewards))
    assert bnpo(*(rewards[one] for one in order)) == [found[one] for one in order]


def test_a_lone_outlier_of_a_sharp_fit_is_capped():
    found = bnpo(*([[1.0] * 500 + [0.0] * 500] * 40), [1.0] * 1 + [0.0] * 999)
    assert np.abs(found[-1]).max() <= MOST
    assert all(np.isfinite(one).all() for one in found)


def test_rewards_in_another_range_are_mapped():
    assert bnpo([3, -1], [-1, 3], reward_min=-1, reward_max=3) == bnpo([1, 0], [0, 1])
    assert bnpo([3, 1, -1], [-1, -1, 3], reward_min=-1, reward_max=3) == bnpo([1, 0.5, 0], [0, 0, 1])
    top = 0.1 + 0.2  # the ends themselves are inside, however they are rounded
    assert bnpo([0.1, top], reward_min=0.1, reward_max=top) == [[-0.5, 0.5]]


@pytest.mark.parametrize(("rewards", "low", "high"), [([0, 2], "0", "2"), ([-0.5, 1], "-0.5", "1"), ([5, 5], "5", "5")])
def test_rewards_outside_the_range_are_refused_with_the_range_to_set(rewards, low, high):
    with pytest.raises(
        ConfigError, match=rf"between reward_min=0 and reward_max=1, and a group has rewards from {low} to {high}; set objective"
    ):
        bnpo([0, 1], rewards)


def test_shaped_rewards_count_for_the_range():
    members = [member([0] * 8), member([0])]
    options = {"overlong_length": 8, "overlong_cache": 1}
    with pytest.raises(ConfigError, match="rewards from -1 to 1"):
        advantages("bnpo", [group([0, 1], members)], **options)
    found = advantages("bnpo", [group([0, 1], members)], reward_min=-1.0, **options)
    assert found[0].tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward_min": 1.0}, "reward_min=1.0 must be below reward_max=1.0"),
        ({"scale_rewards": "group"}, "scale_rewards"),
        ({"baseline": "batch"}, "baseline"),
        ({"turn_discount": 1.0}, "turn_discount"),
        ({"reward_aggregation": "normalize_then_sum"}, "reward_aggregation"),
    ],
)
def test_what_it_does_not_take(options, said):
    with pytest.raises(ConfigError, match=said):
        validate({"name": "bnpo", **options})


def test_its_loss_is_that_of_grpo():
    now, sampler = [[-1.0, -2.0], [-0.3]], [[-1.4, -1.7], [-0.9]]
    for given_, options in itertools.product(([1.0, -2.0], [-0.5, 0.5]), ({}, {"clip_high": 0.5}, {"delta": 4.0})):
        ours, grpo = (losses(name, batch(now, sampler, given_), **options).loss.tolist() for name in ("bnpo", "grpo"))
        assert ours == grpo
