from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import SHARED, Walk, advantages, batch, group, member

from agentrl.errors import ConfigError
from agentrl.objectives import get, validate
from agentrl.objectives.credit import overlong_punishment, turn_returns

EXACT = [("group", "group"), ("group", "batch"), ("group", "none"), ("leave_one_out", "group"), ("leave_one_out", "none")]
BOUNDED = [*EXACT, ("leave_one_out", "batch"), ("batch", "batch"), ("batch", "none")]
UNBOUNDED = [("batch", "group"), ("running", "group"), ("running", "batch"), ("none", "group"), ("none", "batch")]


def grpo(*groups, **options):
    return advantages("grpo", groups, **options)


@pytest.mark.parametrize(("baseline", "scale"), EXACT)
@pytest.mark.parametrize("value", [0.95, 0.1, 1e15 + 0.3, -1e299, 5e-324])
def test_equal_rewards_have_exactly_no_advantage(baseline, scale, value):
    """Beside a group that has one, and whatever the number of members does to the rounding of a mean."""
    found = grpo(group([value] * 7), group([0.0, 1.0]), group([value]), baseline=baseline, scale_rewards=scale)
    assert found[0].tolist() == [0.0] * 7
    assert found[2].tolist() == [0.0]
    assert found[1][1] > 0 > found[1][0]


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_the_step_as_a_baseline(scale):
    found = grpo(group([1.0, 1.0]), group([0.0]), baseline="batch", scale_rewards=scale)  # mean 2/3, std sqrt(1/3)
    width = 1.0 if scale == "none" else math.sqrt(1 / 3) + 1e-4
    assert np.concatenate(found) * width == pytest.approx([1 / 3, 1 / 3, -2 / 3])
    equal = grpo(group([0.95] * 3), group([0.95] * 4), baseline="batch", scale_rewards=scale)
    assert not np.concatenate(equal).any()


def test_no_baseline_and_a_running_one():
    assert grpo(group([2.0, 2.0]), baseline="none", scale_rewards="none")[0].tolist() == [2.0, 2.0]
    found = grpo(group([2.0]), group([0.5]), baseline="running", running_baseline=0.5, scale_rewards="none")
    assert [one.tolist() for one in found] == [[1.5], [0.0]]


@pytest.mark.parametrize("name", [name for name in SHARED if name not in ("ppo", "bnpo")])
def test_a_scale_that_can_be_0_where_the_differences_are_not_is_refused(name):
    """Rewards that are all 1 would get advantages of 10 000: 1 over the 1e-4 that keeps 0 / 0 finite."""
    for baseline, scale in UNBOUNDED:
        with pytest.raises(
            ConfigError, match=f"scale_rewards {scale} divides by a spread .* baseline {baseline} .* set scale_rewards to none"
        ):
            validate({"name": name, "baseline": baseline, "scale_rewards": scale})
        assert validate({"name": name, "baseline": baseline, "scale_rewards": "none"}).baseline == baseline


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.sampled_from(BOUNDED), st.floats(1e-9, 1e9))
def test_scaled_advantages_are_bounded_however_small_the_spread(rewards, how, size):
    baseline, scale = how
    found = grpo(group([reward * size for reward in rewards]), baseline=baseline, scale_rewards=scale)[0]
    assert np.isfinite(found).all()
    if scale != "none":
        count = len(rewards)
        largest = (count - 1) / math.sqrt(count) * (count / (count - 1) if baseline == "leave_one_out" else 1)
        assert np.abs(found).max() <= largest * (1 + 1e-12)
        order = np.argsort(rewards, kind="stable")
        assert (np.diff(found[order]) >= -1e-12).all()


def test_a_spread_of_noise_fades_out_and_a_spread_of_signal_does_not():
    assert np.abs(grpo(group([0, 0, 0, 1e-6]))[0]).max() < 0.01
    assert np.abs(grpo(group([0, 0, 0, 1e-1]))[0]).max() == pytest.approx(1.5, rel=0.01)


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from([*BOUNDED, ("running", "none"), "gdpo"]),
    st.randoms(use_true_random=False),
)
def test_order_changes_no_bit(rewards, how, draw):
    """Neither that of members nor that of groups."""
    options = {"reward_aggregation": "normalize_then_sum"} if how == "gdpo" else dict(zip(("baseline", "scale_rewards"), how, strict=True))
    parts = [{"a": [value / 3 for value in values], "b": [value**2 for value in values]} for values in rewards]
    plain = grpo(*(group(values, parts=part) for values, part in zip(rewards, parts, strict=True)), **options)
    groups = draw.sample(range(len(rewards)), len(rewards))
    orders = [draw.sample(range(len(rewards[one])), len(rewards[one])) for one in groups]
    moved = grpo(
        *(
            group([rewards[one][at] for at in order], parts={name: [values[at] for at in order] for name, values in parts[one].items()})
            for one, order in zip(groups, orders, strict=True)
        ),
        **options,
    )
    for one, order, values in zip(groups, orders, moved, strict=True):
        assert values.tolist() == plain[one][order].tolist()


# Parts of the rewards.


def test_weighted_parts_take_the_place_of_the_score():
    parts = {"correct": [1.0, 0.0, 1.0], "format": [0.5, 1.0, math.nan]}
    found = grpo(group([9, 9, 9], parts=parts), reward_weights={"correct": 2.0, "format": -1.0}, baseline="none", scale_rewards="none")
    assert found[0].tolist() == [1.5, -1.0, 2.0]  # a part that a rollout lacks is 0
    one = grpo(group([9, 9, 9], parts=parts), reward_weights={"format": 1.0}, baseline="none", scale_rewards="none")
    assert one[0].tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "options"), [("grpo", {}), ("grpo", {"reward_aggregation": "normalize_then_sum"}), ("bnpo", {}), ("ppo", {}), ("rloo", {})]
)
def test_weights_of_parts_that_no_score_has_are_refused(name, options):
    scored = group([0.0, 1.0], [member(values=[0.0], reference_logprobs=[-1.0]) for _ in range(2)], parts={"correct": [0, 1]})
    bare = group([0.0, 1.0], scored.members)
    weights = {"fluency": 1.0, "brevity": 0.5}
    with pytest.raises(ConfigError, match=r"reward_weights names brevity, fluency, and the environment's scores have the parts correct$"):
        advantages(name, [scored, bare], reward_weights=weights, **options)
    with pytest.raises(ConfigError, match=r"scores have the parts \(none\)$"):
        advantages(name, [bare], reward_weights=weights, **options)
    with pytest.raises(ConfigError, match=r"names corect, .* the parts correct; did you mean 'correct'"):
        advantages(name, [scored, bare], reward_weights={"corect": 1.0}, **options)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_slip_of_the_pen_is_found_beside_a_right_name_and_a_rare_part_is_none(aggregation):
    groups = [group([0, 0], parts={"correct": [0, 1], "format": [1, 0]}), group([0, 0])]
    with pytest.raises(ConfigError, match=r"names fromat, .* did you mean 'format'"):
        grpo(*groups, reward_weights={"correct": 1.0, "fromat": 1.0}, reward_aggregation=aggregation)
    found = grpo(*groups, reward_weights={"correct": 1.0, "jackpot": 1.0}, reward_aggregation=aggregation)
    assert found[0].tolist() == [-found[0][1], found[0][1]]
    assert found[0][1] > 0
    assert found[1].tolist() == [0, 0]  # no score of this group has any of the parts
    assert grpo(reward_weights={"correct": 1.0}, reward_aggregation=aggregation) == []


def test_no_weights_at_all_are_refused():
    with pytest.raises(ConfigError, match="reward_weights"):
        validate({"name": "grpo", "reward_weights": {}})


def gdpo(*groups, **options):
    return grpo(*groups, reward_aggregation="normalize_then_sum", **options)


def test_normalize_then_sum_by_hand():
    # Part a: (1, 0) has deviations +-0.5 and std 0.70710678: +-0.7070068. Part b is flat. The second group likewise from b: (0, 4), std
    # 2.8284271, deviations +-2: +-0.7070818. Sums +-0.7070068 and -+0.7070818, their std over the step sqrt(2 (0.49986 + 0.49996) / 3).
    found = gdpo(group([0, 0], parts={"a": [1, 0], "b": [3, 3]}), group([0, 0], parts={"a": [2, 2], "b": [0, 4]}))
    first, second = 0.5 / (math.sqrt(0.5) + 1e-4), 2 / (math.sqrt(8) + 1e-4)
    scale = math.sqrt((2 * first**2 + 2 * second**2) / 3) + 1e-4
    assert found[0] == pytest.approx([first / scale, -first / scale], rel=1e-12)
    assert found[1] == pytest.approx([-second / scale, second / scale], rel=1e-12)


def test_normalize_then_sum_gives_each_part_the_same_say():
    """A part of a thousand times the size does not drown the other one, which is the method's point."""
    parts = {"small": [1, 0, 1, 0], "large": [0, 1000, 1000, 0]}
    found = gdpo(group([0] * 4, parts=parts))[0]
    assert found == pytest.approx([0, 0, found[2], -found[2]], abs=1e-3)
    drowned = grpo(group([0] * 4, parts=parts), reward_weights={"small": 1.0, "large": 1.0})[0]
    assert drowned[0] < -0.5
    weighted = gdpo(group([0] * 4, parts=parts), reward_weights={"small": 3.0, "large": 1.0})[0]
    assert weighted[0] > 0.5


def test_normalize_then_sum_at_its_edges():
    rewards = group([0.0, 1.0])
    flat = group([0, 0, 0], parts={"a": [0.95] * 3, "b": [0.1] * 3})
    alone = group([0, 0, 0], parts={"a": [7, math.nan, math.nan], "b": [0, math.nan, 1]})
    single = group([0], parts={"a": [3.0]})
    found = gdpo(rewards, flat, alone, single)
    assert found[0][1] == -found[0][0] > 0  # without parts the score is the only one
    assert found[1].tolist() == [0, 0, 0]
    assert found[2][1] == 0  # who lacks a part stands at its mean, and so does the only one who has it
    assert found[2][2] == -found[2][0] > 0
    assert found[3].tolist() == [0]
    assert [one.tolist() for one in gdpo(flat, flat)] == [[0, 0, 0]] * 2
    assert gdpo() == []


def test_normalize_then_sum_keeps_equal_rewards_exact_beside_shaping():
    long, short = member([0] * 10), member([0] * 2)
    options = {"overlong_length": 10, "overlong_cache": 4}
    found = gdpo(group([1, 1], [long, long]), group([1, 1], [long, short]), group([0.3, 0.1, 0.7]), **options)
    assert found[0].tolist() == [0, 0]
    assert found[1][0] < 0 < found[1][1]


@pytest.mark.parametrize(
    "options",
    [{"baseline": "leave_one_out"}, {"scale_rewards": "none"}, {"scale_rewards": "batch"}, {"baseline": "batch", "scale_rewards": "batch"}],
)
def test_normalize_then_sum_takes_no_other_comparison(options):
    with pytest.raises(ConfigError, match="normalize_then_sum compares parts within groups: set baseline and scale_rewards to group"):
        gdpo(**options)


# Soft overlong punishment and the KL in the reward.


def test_overlong_punishment_at_its_borders():
    lengths = np.array([0, 6, 7, 8, 9, 10, 11, 1000])
    assert overlong_punishment(lengths, 10, 4).tolist() == [0, 0, -0.25, -0.5, -0.75, -1, -1, -1]
    assert overlong_punishment(lengths, 10, 10)[:2].tolist() == [0, -0.6]  # from the first token on
    assert overlong_punishment(np.array([9, 10]), 10, 1).tolist() == [0, -1]
    with pytest.raises(ConfigError, match="overlong_cache=11 must not exceed overlong_length=10"):
        validate({"name": "grpo", "overlong_length": 10, "overlong_cache": 11})
    with pytest.raises(ConfigError, match="overlong_cache has no effect without overlong_length"):
        validate({"name": "dapo", "overlong_cache": 11})


def test_overlong_punishment_counts_all_sampled_tokens_of_all_turns():
    members = [member([0] * 4 + [1] * 4), member([0] * 8), member([2, 0, 1], turn_rewards=[0, 0, 0])]
    found = grpo(group([1, 1, 1], members), overlong_length=10, overlong_cache=4, baseline="none", scale_rewards="none")
    assert found[0].tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("estimator", "penalty"), [("k1", 0.7 - 0.2), ("k2", (0.49 + 0.04) / 2), ("k3", math.exp(-0.7) - 0.3 + math.exp(0.2) - 1.2)]
)
def test_the_kl_in_the_reward(estimator, penalty):
    scored = member([0, 0], sampler_logprobs=[-1.0, -2.0], reference_logprobs=[-1.7, -1.8])
    options = {"beta": 0.5, "kl_in": "reward", "kl_estimator": estimator, "baseline": "none", "scale_rewards": "none"}
    assert grpo(group([2.0], [scored]), **options)[0] == pytest.approx([2 - 0.5 * penalty], rel=1e-12)
    shown = grpo(group([2.0], [scored], reference_kl=np.array([0.5])), **options)
    assert shown[0] == pytest.approx([2 - 0.5 * penalty], rel=1e-12)


def test_a_rollout_that_sampled_nothing_has_no_penalty():
    nothing = member([], sampler_logprobs=[], reference_logprobs=[])
    options = {"beta": 0.5, "kl_in": "reward", "kl_estimator": "k3", "overlong_length": 4, "overlong_cache": 4}
    assert grpo(group([2.0], [nothing]), baseline="none", scale_rewards="none", **options)[0].tolist() == [2.0]


# Credit of turns.


def test_returns_of_turns_by_hand():
    # Rewards 1, 2 and at the end 4 that no turn gave: turn 1 gets 2 + 4 = 6, turn 0 gets 1 + 0.5 * 6 = 4.
    two = member([0, 1], turn_rewards=[1, 2])
    assert turn_returns(7.0, two, 0.5).tolist() == [4, 6]
    assert turn_returns(7.0, two, 1.0).tolist() == [7, 6]
    assert turn_returns(7.0, two, 0.0).tolist() == [1, 6]
    assert turn_returns(7.0, member([], turn_rewards=[]), 0.5).tolist() == [7]


def test_advantages_of_turns_by_hand():
    # Returns (4, 6) and (3): the baseline is the mean of the first ones, 3.5.
    members = [member([0, 0, 1], turn_rewards=[1, 2]), member([0], turn_rewards=[0])]
    found = grpo(group([7.0, 3.0], members), turn_discount=0.5, scale_rewards="none")[0].advantages
    assert [one.tolist() for one in found] == [[0.5, 0.5, 2.5], [-0.5]]
    siblings = grpo(group([7.0, 3.0], members), turn_discount=0.5, scale_rewards="none", baseline="leave_one_out")[0].advantages
    assert [one.tolist() for one in siblings] == [[1, 1, 3], [-1]]
    # Distances from 3.5: sqrt((0.25 + 6.25) / 2) = 1.802776 and 0.5; their std sqrt(3.25 + 0.25) = 1.870829.
    scaled = grpo(group([7.0, 3.0], members), turn_discount=0.5)[0].advantages
    assert np.concatenate(scaled) * (math.sqrt(3.5) + 1e-4) == pytest.approx([0.5, 0.5, 2.5, -0.5], rel=1e-12)
    whole = grpo(group([7.0, 3.0], members), turn_discount=0.5, scale_rewards="batch")[0].advantages
    assert np.concatenate(whole) == pytest.approx(np.concatenate(scaled), rel=1e-12)


def test_a_fork_gets_the_credit_of_its_turns_wherever_its_tokens_lie():
    # Rows of a fork: turns 0, 2 in one, turn 1 in another; a turn of reward 5 that sampled nothing that is trained.
    forked = member([0, 2, 2, 1], turn_rewards=[1, 10, 100, 5])
    found = grpo(group([116.0], [forked]), turn_discount=1.0, baseline="none", scale_rewards="none")[0].advantages
    assert found[0].tolist() == [116, 105, 105, 115]


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.lists(st.integers(0, 3), max_size=5)), min_size=2, max_size=6),
    st.sampled_from([*BOUNDED, ("running", "none"), ("none", "none")]),
)
def test_rewards_at_the_end_alone_are_credited_as_without_turns(rollouts, how):
    """With a discount of 1; to the last bit where nothing is scaled."""
    options = dict(zip(("baseline", "scale_rewards"), how, strict=True))
    one = group([reward for reward, _ in rollouts], [member(turns, turn_rewards=[0] * 4) for _, turns in rollouts])
    plain, credit = grpo(one, **options)[0], grpo(one, turn_discount=1.0, **options)[0]
    for value, tokens, (_, turns) in zip(plain, credit.advantages, rollouts, strict=True):
        assert len(tokens) == len(turns)
        assert (
            tokens == pytest.approx([value] * len(turns), rel=1e-12, abs=0) if how[1] != "none" else tokens.tolist() == [value] * len(turns)
        )


def test_turns_that_differ_where_whole_returns_do_not_stay_bounded():
    """The whole returns have no spread: scaled by theirs, the later turns would get 10 000 times their difference."""
    members = [member([0, 1], turn_rewards=[1, 0]), member([0, 1], turn_rewards=[0, 1])]
    for scale in ("group", "batch"):
        found = np.concatenate(grpo(group([1.0, 1.0], members), turn_discount=1.0, scale_rewards=scale)[0].advantages)
        assert found == pytest.approx([0, -math.sqrt(2), 0, 0], rel=1e-3)


RETURNS = {(0,): (0.4,)}
RETURNS |= {(1, second): (0.1, reward) for second, reward in enumerate((1.0, 2.5, 1.5))}
RETURNS |= {(2, second): (-0.2, reward) for second, reward in enumerate((1.2, 3.0, 0.0))}
"""Rewards of each turn: long episodes are the better ones, so that the number of turns goes with the reward."""


def expected_turn_gradient(walk, discount, advantages_of):
    """Gradient that the policy ascends, over all pairs of episodes by their probability on policy."""
    total = torch.zeros((), dtype=torch.float64)
    now = {one: walk.logprobs(one) for one in Walk.EPISODES}
    config = validate({"name": "grpo"})
    for pair in itertools.product(Walk.EPISODES, repeat=2):
        chance = math.prod(walk.chance(episode).item() for episode in pair)
        inputs = batch([now[one] for one in pair], [now[one].detach() for one in pair], advantages_of(pair, discount))
        total = total + chance * get("grpo").loss(inputs, config).loss.sum()
    return -walk.gradient(total) / 2


def turn_credit(baseline):
    def of(pair, discount):
        members = [member(range(len(one)), turn_rewards=RETURNS[one]) for one in pair]
        one = group([sum(RETURNS[one]) for one in pair], members)
        return [list(values) for values in grpo(one, turn_discount=discount, baseline=baseline, scale_rewards="none")[0].advantages]

    return of


def policy_gradient(walk, discount=1.0):
    """d of the sum of each turn's return, discounted from that turn on, written out as the score function of each state."""
    total = torch.zeros((), dtype=torch.float64)
    for episode in Walk.EPISODES:
        returns = turn_returns(sum(RETURNS[episode]), member(range(len(episode)), turn_rewards=RETURNS[episode]), discount)
        total = total + walk.chance(episode).detach() * (torch.from_numpy(returns) * walk.logprobs(episode)).sum()
    return walk.gradient(total)


def test_turn_credit_is_the_policy_gradient_where_the_number_of_turns_goes_with_the_reward():
    walk = Walk(5)
    value = sum(walk.chance(episode) * sum(RETURNS[episode]) for episode in Walk.EPISODES)
    true = walk.gradient(value)
    torch.testing.assert_close(policy_gradient(walk), true, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(expected_turn_gradient(walk, 1.0, turn_credit("leave_one_out")), true, rtol=1e-12, atol=1e-13)
    # A member is part of the mean that it is compared with: (n - 1) / n of it.
    torch.testing.assert_close(expected_turn_gradient(walk, 1.0, turn_credit("group")), true / 2, rtol=1e-12, atol=1e-13)
    assert true[0, 0] < -0.01  # ending early is worse


def test_a_long_good_episode_is_credited_above_a_short_bad_one_from_its_first_turn_on():
    """Each turn is measured against whole returns, not against the siblings' turns of its number, which are in other states."""
    members = [member([0, 1, 2], turn_rewards=[0, 0, 3]), member([0], turn_rewards=[1])]
    long, short = grpo(group([3.0, 1.0], members), turn_discount=1.0)[0].advantages
    assert long.min() > 0 > short[0]


@pytest.mark.parametrize("discount", [0.0, 0.5])
def test_discounted_turn_credit_is_unbiased_for_discounted_returns(discount):
    walk = Walk(6)
    found = expected_turn_gradient(walk, discount, turn_credit("leave_one_out"))
    torch.testing.assert_close(found, policy_gradient(walk, discount), rtol=1e-12, atol=1e-13)


# The running baseline.


def run(steps, **options):
    objective = get("reinforce")
    config = validate({"name": "reinforce", **options})
    state, seen = objective.state(config), []
    for reward in steps:
        seen.append(objective.in_force(config, state).running_baseline)
        metrics = {"learner/rollouts": 2.0} | ({} if reward is None else {"learner/reward_mean": reward})
        state = objective.next_state(config, state, metrics)
    return [*seen, objective.in_force(config, state).running_baseline]


def test_the_running_baseline_is_the_mean_of_earlier_steps():
    assert run([1.0, 3.0, 8.0]) == [0, 1, 2, 4]
    assert run([1.0, None, 3.0]) == [0, 1, 1, 2]  # a step without a reward is none
    assert run([4.0, 4.0], running_baseline=2.0, running_decay=0.5) == [2, 3, 3.5]
    assert run([4.0], running_baseline=2.0, running_decay=0.0) == [2, 4]


@pytest.mark.parametrize("options", [{"running_decay": 0.9}, {"running_baseline": 0.5}])
def test_options_of_the_running_baseline_are_refused_without_it(options):
    with pytest.raises(ConfigError, match="belong to baseline running, and the baseline is group: remove them"):
        validate({"name": "grpo", **options})
