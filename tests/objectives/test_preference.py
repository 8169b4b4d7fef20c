from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import advantages, batch, group, losses, member, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import get, validate
from agentrl.objectives.a2po import optimal_value

RIVAL = ("nash_md", "xpo", "a2po")


def played(rewards, *, size=None, indices=None, truncated=(), rivals=False, preferences=None):
    """A group of which some members may have been unscorable: `indices` are those that are left."""
    size = size or len(rewards)
    indices = range(len(rewards)) if indices is None else indices
    members = [member(index=at, rival=rivals and at >= size // 2, truncated=at in truncated) for at in indices]
    return group(rewards, members, size=size, preferences=preferences or {})


def pairs(name, *groups, **options):
    return [list(one.pairs) for one in advantages(name, groups, **options)]


# Pairs.


@pytest.mark.parametrize("name", ["online_dpo", "xpo"])
def test_halves_are_paired_and_the_better_one_is_chosen(name):
    assert pairs(name, played([3, 1, 2, 2], rivals=True)) == [[(0, 2), (3, 1)]]
    (credit,) = advantages(name, [played([3, 1, 2, 2], rivals=True)])
    assert credit.trained.tolist() == [True] * 4
    assert credit.advantages.tolist() == [0] * 4


@pytest.mark.parametrize("name", ["online_dpo", "xpo"])
def test_a_tie_trains_nobody(name):
    """TRL takes the first of them for the better one."""
    (credit,) = advantages(name, [played([1, 0, 1, 2], rivals=True)])
    assert list(credit.pairs) == [(3, 1)]
    assert credit.trained.tolist() == [False, True, False, True]
    (none,) = advantages(name, [played([0.95] * 8, rivals=True)])
    assert not none.pairs
    assert not none.trained.any()


@pytest.mark.parametrize("name", ["online_dpo", "xpo"])
def test_unscorable_members_leave_their_partner_alone(name):
    # Of members 0 to 5, member 1 is missing: 0 with 3 and 2 with 5 are left, at places 0, 2 and 1, 4.
    found = played([5, 4, 3, 2, 1], size=6, indices=[0, 2, 3, 4, 5], rivals=True)
    (credit,) = advantages(name, [found])
    assert list(credit.pairs) == [(0, 2), (1, 4)]
    assert credit.trained.tolist() == [True, True, True, False, True]
    assert pairs(name, played([1.0], size=4, indices=[2], rivals=True)) == [[]]


def test_an_odd_group_leaves_its_last_member_out():
    assert pairs("online_dpo", played([1, 2, 3])) == [[(1, 0)]]
    assert pairs("online_dpo", played([1, 2, 3]), pairing="extremes") == [[(2, 0)]]


def test_extremes_take_the_best_against_the_worst():
    assert pairs("online_dpo", played([1, 5, 3, 0]), pairing="extremes") == [[(1, 3)]]
    (credit,) = advantages("online_dpo", [played([1, 5, 3, 0])], pairing="extremes")
    assert credit.trained.tolist() == [False, True, False, True]
    assert pairs("online_dpo", played([2, 2, 2]), played([7.0]), pairing="extremes") == [[], []]
    assert pairs("online_dpo", played([1, 5, 5, 1]), pairing="extremes") == [[(1, 0)]]  # the first of equal ones


def test_a_judge_is_asked_instead_of_the_rewards():
    judged = {(0, 2): 0.9, (1, 3): 0.2}
    assert pairs("online_dpo", played([0, 0, 0, 0], preferences=judged), preferences="judge") == [[(0, 2), (3, 1)]]
    assert pairs("xpo", played([0, 9, 9, 0], rivals=True, preferences=judged), preferences="judge") == [[(0, 2), (3, 1)]]
    undecided = {(0, 2): 0.5}  # and nothing was said of the other pair
    assert pairs("online_dpo", played([9, 9, 0, 0], preferences=undecided), preferences="judge") == [[]]


def test_the_penalty_of_truncated_rollouts():
    truncated = played([1.0, 0.5], truncated={0})
    assert pairs("online_dpo", truncated) == [[(0, 1)]]
    assert pairs("online_dpo", truncated, truncated_penalty=0.6) == [[(1, 0)]]
    assert pairs("online_dpo", truncated, truncated_penalty=0.5) == [[]]
    assert pairs("online_dpo", played([1, 0.5, 0.7], truncated={0}), truncated_penalty=1.0, pairing="extremes") == [[(2, 0)]]
    assert pairs("xpo", played([1.0, 0.5], truncated={0, 1}, rivals=True), truncated_penalty=1.0) == [[(0, 1)]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"name": "online_dpo", "pairing": "extremes", "preferences": "judge"},
            r"pairing extremes takes the best and the worst .* take halves",
        ),
        (
            {"name": "online_dpo", "truncated_penalty": 1.0, "preferences": "judge"},
            r"truncated_penalty is taken off a reward, .* judge reads none",
        ),
        (
            {"name": "xpo", "truncated_penalty": 1.0, "preferences": "judge"},
            r"truncated_penalty is taken off a reward, .* judge reads none",
        ),
    ],
)
def test_what_a_judge_does_not_read_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        validate(options)


# The losses of pairs.


def pair(margin, *, dtype=torch.float64, rival=(False, True)):
    """One pair whose log-ratios to the reference are margin and 0; the chosen one has two tokens."""
    now, reference = [[-1.0, -1.0], [-2.0]], [[-1.0 - margin, -1.0], [-2.0]]
    marks = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "rival": torch.tensor(rival)}
    return batch(now, now, [0.0, 0.0], dtype=dtype, reference_logprobs=reference, **marks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [-1e4, -300.0, -10.0, -1e-3, 0.0, 1e-3, 10.0, 300.0, 1e4])
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_dpo_at_any_margin(margin, beta, dtype):
    """-log sigmoid(beta D), whose slope is -beta sigmoid(-beta D): at most beta, and none left where the pair is well apart."""
    inputs = pair(margin, dtype=dtype)
    found = losses("online_dpo", inputs, beta=beta)
    x = beta * margin
    expected = math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))
    assert found.loss.item() == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 1e-8, abs=1e-9)
    slope = slopes(found, inputs)
    gate = math.exp(-x) / (1 + math.exp(-x)) if x > 0 else 1 / (1 + math.exp(x))
    assert slope.tolist() == pytest.approx([-beta * gate] * 2 + [beta * gate], rel=1e-2 if dtype == torch.float32 else 1e-8, abs=1e-9)


@pytest.mark.parametrize("margin", [-1e4, -1.0, 0.0, 5.0, 7.0, 1e4])
def test_ipo_pulls_to_its_margin_from_both_sides(margin):
    inputs = pair(margin)
    found = losses("online_dpo", inputs, loss="ipo", beta=0.1)  # 1 / (2 beta) = 5
    assert found.loss.item() == pytest.approx((margin - 5) ** 2)
    assert slopes(found, inputs).tolist() == pytest.approx([2 * (margin - 5)] * 2 + [-2 * (margin - 5)])


def test_the_metrics_of_a_pair():
    found = losses("online_dpo", pair(0.5), beta=2.0)
    assert {name: values.tolist() for name, values in found.metrics.items()} == {
        "rewards/chosen": [1.0],
        "rewards/rejected": [0.0],
        "rewards/margins": [1.0],
        "rewards/accuracies": [1.0],
        "logps/chosen": [-2.0],
        "logps/rejected": [-2.0],
    }
    assert losses("online_dpo", pair(0.0)).metrics["rewards/accuracies"].tolist() == [0]


@pytest.mark.parametrize("rival", [(False, True), (True, False)])
def test_xpo_pushes_the_reference_s_sample_down_whether_it_won_or_lost(rival):
    inputs = pair(0.3, rival=rival)
    dpo = slopes(losses("online_dpo", inputs), inputs)
    found = losses("xpo", inputs, alpha=0.01)
    extra = [0.01, 0.01, 0] if rival[0] else [0, 0, 0.01]
    assert (slopes(found, inputs) - dpo).tolist() == pytest.approx(extra)
    assert found.metrics["loss/xpo"].tolist() == pytest.approx([-0.02])
    assert slopes(losses("xpo", inputs, alpha=0.0), inputs).tolist() == dpo.tolist()


# Nash-MD.


def chances(*groups, **options):
    return [(one.advantages.tolist(), one.trained.tolist()) for one in advantages("nash_md", groups, **options)]


def test_the_chance_to_win():
    ((given_, trained),) = chances(played([1, 0, 0, 0], rivals=True))
    assert given_ == pytest.approx([1 / (1 + math.exp(-1)) - 0.5, 0, 0, 0])
    assert trained == [True, True, False, False]
    ((far, _),) = chances(played([1e9, -1e9, -1e9, 1e9], rivals=True))
    assert far == [0.5, -0.5, 0, 0]
    judged = {(0, 2): 0.9, (1, 3): 0.5}
    ((verdict, trained),) = chances(played([0] * 4, rivals=True, preferences=judged), preferences="judge")
    assert verdict == pytest.approx([0.4, 0, 0, 0])
    assert trained == [True, True, False, False]  # a draw is a verdict: the KL still pulls
    ((_, trained),) = chances(played([0] * 4, rivals=True, preferences={(1, 3): 1.0}), preferences="judge")
    assert trained == [False, True, False, False]


def test_nash_md_needs_a_rival_for_each_rollout():
    ((_, trained),) = chances(played([5, 4, 3], size=4, indices=[0, 1, 3], rivals=True))
    assert trained == [False, True, False]
    assert chances(played([1.0, 2.0], size=4, indices=[2, 3], rivals=True)) == [([0, 0], [False, False])]


def test_nash_md_pulls_back_by_the_log_ratio_of_the_whole_rollout():
    # h = 0.5 + 0.2 = 0.7 on each token, not 0.5 and 0.2: what a token does to those after it counts.
    inputs = batch([[-1.0, -2.0]], [[-1.0, -2.0]], [0.3], reference_logprobs=[[-1.5, -2.2]])
    assert slopes(losses("nash_md", inputs, beta=0.5), inputs).tolist() == pytest.approx([-(0.3 - 0.5 * 0.7)] * 2)
    assert slopes(losses("nash_md", inputs, beta=0.0), inputs).tolist() == pytest.approx([-0.3] * 2)
    stale = batch([[-1.0, -2.0]], [[-2.0, -2.5]], [0.3], reference_logprobs=[[-1.0, -2.0]])
    assert slopes(losses("nash_md", stale), stale).tolist() == pytest.approx([-0.3 * math.exp(1.5)] * 2)
    assert slopes(losses("nash_md", stale, ratio_max=2.0), stale).tolist() == pytest.approx([-0.6] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nash_md_is_finite_far_off_policy(dtype):
    for now, sampler in ((-3.0, -30.0), (-30.0, -3.0), (-500.0, -0.1)):
        inputs = batch([[now] * 3], [[sampler] * 3], [0.5], dtype=dtype, reference_logprobs=[[-1.0] * 3])
        assert torch.isfinite(slopes(losses("nash_md", inputs), inputs)).all()


# A*-PO.


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), st.floats(1e-3, 1e3))
def test_the_optimal_value_lies_between_the_mean_and_the_best(rewards, beta1):
    values = np.array(rewards)
    found = optimal_value(values, beta1)
    slack = 1e-9 * max(1.0, np.abs(values).max())
    assert values.mean() - slack <= found <= values.max() + slack
    assert optimal_value(values[::-1], beta1) == found
    assert optimal_value(values + 7, beta1) == pytest.approx(found + 7, abs=1e-6)


def test_the_optimal_value_by_hand_and_at_its_ends():
    assert optimal_value(np.array([1.0, 0.0]), 0.5) == pytest.approx(0.5 * math.log((math.exp(2) + 1) / 2))
    assert optimal_value(np.array([1e6, 0.0]), 1e-3) == pytest.approx(1e6)
    assert optimal_value(np.array([-1e6, -1e6]), 1e-3) == -1e6
    assert optimal_value(np.array([1.0, 0.0]), 1e6) == pytest.approx(0.5, abs=1e-6)
    assert optimal_value(np.array([0.95] * 7), 0.1) == 0.95


def test_advantages_over_the_optimal_value_are_the_policy_s_alone():
    (credit,) = advantages("a2po", [played([1, 0, 1, 0], rivals=True)])
    value = 0.5 * math.log((math.exp(2) + 1) / 2)
    assert credit.advantages[:2] == pytest.approx([1 - value, -value])
    assert credit.trained.tolist() == [True, True, False, False]


def test_groups_that_the_reference_never_solves_are_left_out_if_asked():
    unsolved = played([1, 0, 0, 0], rivals=True)
    (left_out,) = advantages("a2po", [unsolved])
    assert not left_out.trained.any()
    (kept,) = advantages("a2po", [unsolved], filter_all_incorrect=False)
    assert kept.trained.tolist() == [True, True, False, False]
    assert kept.advantages[:2].tolist() == [1, 0]
    (negative,) = advantages("a2po", [played([1, 0, -1, -2], rivals=True)])
    assert not negative.trained.any()


@pytest.mark.parametrize("filters", [True, False])
def test_a_group_without_scorable_rivals_or_without_the_policy_s_own_is_left_out(filters):
    for indices in ([0, 1], [2, 3]):
        (credit,) = advantages("a2po", [played([1.0, 2.0], size=4, indices=indices, rivals=True)], filter_all_incorrect=filters)
        assert not credit.trained.any()


def test_the_regression_of_a2po():
    inputs = batch([[-1.0, -2.0]], [[-5.0, -5.0]], [0.3], reference_logprobs=[[-1.5, -2.5]])
    found = losses("a2po", inputs, beta2=0.1)  # 0.1 * 1 - 0.3 = -0.2, whoever sampled
    assert found.loss.tolist() == pytest.approx([0.04])
    assert slopes(found, inputs).tolist() == pytest.approx([2 * 0.1 * -0.2] * 2)
    far = batch([[-300.0]], [[-0.1]], [1e4], reference_logprobs=[[-0.1]], dtype=torch.float32)
    assert torch.isfinite(slopes(losses("a2po", far), far)).all()


@pytest.mark.parametrize("name", ["online_dpo", *RIVAL])
def test_what_they_need(name):
    needs = get(name).needs(validate({"name": name}))
    assert needs.reference
    assert needs.group_size == 2
    assert needs.pairs == (name in ("online_dpo", "xpo"))
    assert (needs.rival is not None) == (name in RIVAL)
    assert not needs.judge
    if name != "a2po":
        assert get(name).needs(validate({"name": name, "preferences": "judge"})).judge
    assert not get(name).zero_advantage_is_zero_loss(validate({"name": name}))
