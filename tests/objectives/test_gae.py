from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import advantages, group, member

from agentrl.objectives import validate
from agentrl.objectives.gae import gae, token_rewards, whiten

EPISODES = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), max_size=9)
SHARES = st.floats(0, 1)


def credit(*groups, **options):
    return advantages("ppo", groups, **({"beta": 0.0, "whiten": False} | options))


def given_to_tokens(reward, one, **options):
    order = np.argsort(one.turn, kind="stable")
    return token_rewards(reward, one, order, validate({"name": "ppo", "beta": 0.0, **options}))


@given(EPISODES, SHARES, SHARES)
def test_it_is_the_sum_of_discounted_errors(episode, discount, decay):
    rewards, values = (np.array([row[at] for row in episode]) for at in (0, 1))
    following = [*values[1:], 0.0][: len(values)]
    deltas = [reward + discount * after - value for reward, after, value in zip(rewards, following, values, strict=True)]
    naive = [sum((discount * decay) ** (later - now) * deltas[later] for later in range(now, len(deltas))) for now in range(len(deltas))]
    assert gae(rewards, values, discount=discount, decay=decay) == pytest.approx(naive, rel=1e-9, abs=1e-9)


@given(EPISODES, SHARES)
def test_lambda_1_is_the_return_and_lambda_0_the_error_of_one_step(episode, discount):
    rewards, values = (np.array([row[at] for row in episode]) for at in (0, 1))
    returns = [sum(discount ** (later - now) * rewards[later] for later in range(now, len(rewards))) for now in range(len(rewards))]
    assert gae(rewards, values, discount=discount, decay=1) == pytest.approx(np.array(returns) - values, rel=1e-9, abs=1e-9)
    following = np.append(values[1:], 0)[: len(values)]
    assert gae(rewards, values, discount=discount, decay=0) == pytest.approx(rewards + discount * following - values, abs=1e-12)


def test_by_hand():
    # Rewards 0, 0, 8 and values 1, 2, 4, gamma = lambda = 1/2. delta = 0 + 1 - 1 = 0, 0 + 2 - 2 = 0, 8 - 4 = 4; A = 4 / 16, 4 / 4, 4.
    found = credit(group([8.0], [member([0, 0, 0], values=[1, 2, 4])]), discount=0.5, gae_lambda=0.5)[0]
    assert found.advantages[0].tolist() == [0.25, 1, 4]
    assert found.returns[0].tolist() == [1.25, 3, 8]


def test_rewards_of_turns_lie_on_the_last_token_of_their_turn():
    one = member([0, 0, 1, 2, 2], turn_rewards=[1, 2, 4])
    assert given_to_tokens(7.0, one).tolist() == [0, 1, 2, 0, 4]
    assert given_to_tokens(17.0, one).tolist() == [0, 1, 2, 0, 14]  # what no turn gave came at the end


@pytest.mark.parametrize(
    ("turn", "turn_rewards", "expected"),
    [
        ([0, 0, 2], [0, 5, 1], [0, 5, 1]),  # the middle turn sampled nothing that is trained
        ([1, 1], [5, 1], [5, 1]),  # the first one: its reward comes before every token
        ([0, 0], [1, 0, 5], [0, 6]),
        ([0, 0], [-1, 0, 0], [0, -1]),
    ],
)
def test_no_reward_of_a_turn_without_tokens_is_lost(turn, turn_rewards, expected):
    one = member(turn, turn_rewards=turn_rewards)
    assert given_to_tokens(float(sum(turn_rewards)), one).tolist() == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.lists(st.floats(-5, 5), min_size=5, max_size=5), st.floats(-5, 5))
def test_every_reward_is_given_once(turn, turn_rewards, more):
    reward = math.fsum(turn_rewards) + more
    found = given_to_tokens(reward, member(turn, turn_rewards=turn_rewards))
    assert math.fsum(found) == pytest.approx(reward, abs=1e-12)


def test_a_fork_is_walked_in_the_order_of_time():
    """Rows lie behind each other: turns 0 and 2 in the first, turn 1 in the second. The same episode in order gives the same numbers."""
    place = [0, 1, 4, 5, 2, 3]
    in_order = member([0, 0, 1, 1, 2, 2], turn_rewards=[1, 2, 4], values=np.arange(6) / 3)
    forked = member([0, 0, 2, 2, 1, 1], turn_rewards=[1, 2, 4], values=(np.arange(6) / 3)[place])
    one, other = (credit(group([8.0], [rollout]), discount=0.9, gae_lambda=0.8)[0] for rollout in (in_order, forked))
    assert other.advantages[0].tolist() == one.advantages[0][place].tolist()
    assert other.returns[0].tolist() == one.returns[0][place].tolist()


@pytest.mark.parametrize(("estimator", "first"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_the_kl_is_taken_off_each_token(estimator, first):
    one = member([1, 0], turn_rewards=[1, 0], sampler_logprobs=[-2.0, -1.0], reference_logprobs=[-2.0, -1.5])
    found = given_to_tokens(3.0, one, beta=0.1, kl_estimator=estimator)
    assert found == pytest.approx([1 - 0.1 * first, 2.0])
    assert given_to_tokens(3.0, one, beta=0.1, kl_in="loss").tolist() == [1, 2]


def test_the_kl_is_taken_off_once():
    """Not off the tokens and off the whole reward as well."""
    one = member([0, 0], values=[0, 0], sampler_logprobs=[-1.0, -1.0], reference_logprobs=[-1.5, -2.0])
    found = credit(group([1.0], [one], reference_kl=np.array([1.5])), beta=0.1, gae_lambda=1.0)[0]
    assert found.returns[0] == pytest.approx([1 - 0.15, 1 - 0.1])


def test_overlong_punishment_and_weights_of_parts_reach_the_last_token():
    one = member([0, 0], turn_rewards=[0.5], values=[0, 0])
    options = {"gae_lambda": 1.0, "reward_weights": {"a": 3.0}, "overlong_length": 2, "overlong_cache": 1}
    assert given_to_tokens(2.0, one).tolist() == [0, 2]
    assert credit(group([9.0], [one], parts={"a": [2.0]}), **options)[0].returns[0].tolist() == [5, 5]


def test_rollouts_without_tokens_have_empty_columns_and_move_nothing():
    full, nothing = member([0, 0], values=[1, 2]), member([], values=[])
    alone = advantages("ppo", [group([1.0], [full])], beta=0.0)[0]
    found = advantages("ppo", [group([5.0, 1.0], [nothing, full]), group([3.0], [nothing])], beta=0.0)
    assert [len(one) for one in found[0].advantages] == [0, 2]
    assert [len(one) for one in found[0].returns] == [0, 2]
    assert found[0].advantages[1].tolist() == alone.advantages[0].tolist()
    assert [len(one) for one in found[1].advantages] == [0]
    assert advantages("ppo", []) == []


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), min_size=1, max_size=5))
def test_whitening_gives_mean_0_and_variance_1(rows):
    columns = [np.array(row, dtype=float) for row in rows]
    found = whiten(columns)
    assert [len(one) for one in found] == [len(one) for one in columns]
    whole, before = np.concatenate(found), np.concatenate(columns)
    if len(whole) < 2:
        assert whole.tolist() == before.tolist()
        return
    variance = before.var(ddof=1)
    assert whole.mean() == pytest.approx(0, abs=1e-6)
    assert whole.var(ddof=1) == pytest.approx(variance / (variance + 1e-8), rel=1e-6, abs=1e-6)
    assert whole == pytest.approx((before - before.mean()) / math.sqrt(variance + 1e-8), rel=1e-6, abs=1e-6)


def test_whitening_equal_advantages_gives_zeros_and_changes_no_return():
    equal = [member([0, 0], values=[0.3, 0.3]) for _ in range(2)]
    found = advantages("ppo", [group([0.3, 0.3], equal)], beta=0.0, gae_lambda=0.0)[0]
    assert np.concatenate(found.advantages).tolist() == [0, 0, 0, 0]
    assert np.concatenate(found.returns).tolist() == pytest.approx([0.3] * 4)


def test_returns_are_raw_advantages_and_values_whether_whitened_or_not():
    draw = np.random.default_rng(2)
    members = [member([0] * length, values=draw.normal(size=length).astype(np.float32)) for length in (3, 5, 1)]
    raw = advantages("ppo", [group([1.0, -2.0, 0.5], members)], beta=0.0, whiten=False)[0]
    white = advantages("ppo", [group([1.0, -2.0, 0.5], members)], beta=0.0)[0]
    for at, one in enumerate(members):
        assert raw.returns[at].tolist() == white.returns[at].tolist() == (raw.advantages[at] + one.values).tolist()
    whole = np.concatenate(white.advantages)
    assert whole.mean() == pytest.approx(0, abs=1e-12)
    assert np.corrcoef(whole, np.concatenate(raw.advantages))[0, 1] == pytest.approx(1)


def test_a_perfect_critic_leaves_no_advantage():
    """Values that are the discounted return from each token on."""
    one = member([0, 0, 0], values=[0.25 * 8, 0.5 * 8, 8])
    found = credit(group([8.0], [one]), discount=0.5, gae_lambda=0.7)[0]
    assert found.advantages[0].tolist() == [0, 0, 0]
