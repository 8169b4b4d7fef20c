from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import SHARED, batch, losses, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import StepColumns, get, validate
from agentrl.objectives.entropy import adapted_entropy_coefficient, highest, needed

# Tokens of the highest entropy.


def test_the_highest_by_hand():
    entropies = np.array([0.1, 0.9, 0.3, 0.7, 0.5])
    assert highest(entropies, 0.4).tolist() == [0, 2.5, 0, 2.5, 0]
    assert highest(entropies, 1.0).tolist() == [1] * 5
    assert highest(entropies, 1e-9).tolist() == [0, 5, 0, 0, 0]
    assert highest(np.array([0.2]), 0.01).tolist() == [1]
    assert highest(np.zeros(0), 0.2).tolist() == []


def test_ties_at_the_border_are_all_kept():
    assert highest(np.array([0.5, 0.5, 0.5, 0.1]), 0.25).tolist() == pytest.approx([4 / 3] * 3 + [0])
    assert highest(np.zeros(7), 0.2).tolist() == [1] * 7
    assert highest(np.array([1.0, 1.0, 0.0, 0.0]), 0.5).tolist() == [2, 2, 0, 0]


@given(st.lists(st.floats(0, 12), min_size=1, max_size=60), st.floats(0.001, 1))
def test_the_share_is_kept_and_the_mean_is_over_the_kept(entropies, share):
    values = np.array(entropies)
    found = highest(values, share)
    kept = found > 0
    assert found.sum() == pytest.approx(len(values))
    assert kept.sum() >= max(1, math.floor(share * len(values)))
    if not kept.all():
        assert values[kept].min() > values[~kept].max()
    if len(set(entropies)) == len(entropies):
        assert kept.sum() <= math.ceil(share * (len(values) - 1)) + 1


def test_the_policy_term_is_a_mean_over_the_kept_tokens_and_other_terms_over_all():
    columns = {"keep": [[2.0, 0.0]], "entropy": [[0.6, 0.2]], "reference_logprobs": [[-2.0, -2.0]]}
    inputs = batch([[-1.0, -1.0]], [[-1.0, -1.0]], [1.5], **columns)
    found = losses("dapo", inputs, top_entropy=0.5, beta=0.5, entropy_coef=0.1)
    assert found.loss.tolist() == [-3, 0]  # / 2 tokens: -1.5, the mean of the one that is kept
    assert found.terms["kl"].min() > 0
    assert found.terms["entropy"].tolist() == pytest.approx([-0.06, -0.02])
    assert found.token_metrics["selected"].tolist() == [1, 0]


@pytest.mark.parametrize("name", [name for name in SHARED if name != "rloo"])
def test_every_objective_of_tokens_selects(name):
    columns = StepColumns(
        advantages=np.array([1.0, -1.0, 1.0, 1.0]),
        sampler_logprobs=np.full(4, -1.0),
        start_logprobs=np.full(4, -1.1),
        start_entropy=np.array([0.1, 0.9, 0.3, 0.7]),
        rollout=np.array([0, 1, 2, 2]),
        seed=(0, 0),
    )
    config = validate({"name": name, "top_entropy": 0.5})
    assert get(name).needs(config).start
    assert get(name).select(columns, config)["keep"].tolist() == [0, 2, 0, 2]
    assert "keep" not in get(name).select(columns, validate({"name": name}))


def test_an_objective_of_rollouts_does_not():
    with pytest.raises(ConfigError, match="top_entropy chooses tokens, and rloo has one loss a rollout"):
        validate({"name": "rloo", "top_entropy": 0.5})


# The bonus and its coefficient.


@pytest.mark.parametrize("name", SHARED)
def test_the_bonus_raises_entropy_in_every_objective(name):
    ones = [[1.0, 1.0]]
    columns = dict.fromkeys(("within", "detached", "held", "values", "start_values", "returns", "staleness"), ones)
    logits = torch.tensor([[0.3, -1.0, 0.4], [1.0, 0.0, 0.1]], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    inputs = batch([logprobs[:, 0]], [logprobs[:, 0].detach()], [0.0], entropy=[entropy], reference_logprobs=ones, **columns)
    config = validate({"name": name, "entropy_coef": 0.5, "beta": 0.0})
    assert get(name).needs(config).entropy
    assert not get(name).zero_advantage_is_zero_loss(config)
    found = get(name).loss(inputs, config)
    assert found.terms["entropy"].tolist() == pytest.approx((-0.5 * entropy).tolist())
    (slope,) = torch.autograd.grad(found.terms["entropy"].sum(), logits, retain_graph=True)
    (own,) = torch.autograd.grad(entropy.sum(), logits)
    torch.testing.assert_close(slope, -0.5 * own)


def test_a_bonus_without_entropies_is_no_silent_nothing():
    with pytest.raises(AssertionError, match="entropy_coef > 0 asks for entropies"):
        losses("grpo", batch([[-1.0]], [[-1.0]], [1.0]), entropy_coef=0.1)


@pytest.mark.parametrize(
    ("coefficient", "entropy", "expected"),
    [
        (0.01, 0.1, 0.015),
        (0.01, 0.3, 0.005),
        (0.01, 0.2, 0.01),  # exactly at the target nothing moves
        (0.0, 0.3, 0.0),
        (0.003, 0.3, 0.0),
        (0.999, 0.1, 1.0),
        (1.0, 0.1, 1.0),
    ],
)
def test_the_adaptive_coefficient_by_hand(coefficient, entropy, expected):
    assert adapted_entropy_coefficient(coefficient, entropy, 0.2, 0.005, 0.0, 1.0) == pytest.approx(expected, abs=1e-15)


@given(st.floats(0, 1), st.floats(0, 5), st.floats(0, 5), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_the_adaptive_coefficient_stays_in_its_range(coefficient, entropy, target, delta, one, other):
    least, most = sorted((one, other))
    found = adapted_entropy_coefficient(coefficient, entropy, target, delta, least, most)
    assert least <= found <= most
    inside = min(most, max(least, coefficient))
    assert abs(found - inside) <= delta + 1e-15
    assert (found > inside) <= (entropy < target)
    assert (found < inside) <= (entropy > target)


def run(entropies, **options):
    """The coefficient in force in each step, and after the last."""
    objective = get("grpo")
    config = validate({"name": "grpo", "entropy_target": 0.2, "entropy_coef": 0.01, **options})
    state, seen = objective.state(config), []
    for entropy in (*entropies, None):
        seen.append(objective.in_force(config, state).entropy_coef)
        figures = {"learner/rollouts": 1.0} | ({} if entropy is None else {"entropy": entropy})
        state = objective.next_state(config, state, figures)
    return seen


def test_the_coefficient_follows_the_entropies_of_the_steps():
    # 0.1 < 0.2: one delta more. 0.2: unchanged. 0.5: one less.
    assert run([0.1, 0.2, 0.5, 0.1]) == pytest.approx([0.01, 0.015, 0.015, 0.01, 0.015])
    assert run([0.1] * 3, entropy_delta=0.1, entropy_coef_max=0.15) == pytest.approx([0.01, 0.11, 0.15, 0.15])
    assert run([0.5, 0.5, 0.1], entropy_coef_min=0.008) == pytest.approx([0.01, 0.008, 0.008, 0.013])
    assert run([0.1, None, 0.1]) == pytest.approx([0.01, 0.015, 0.015, 0.02])


@pytest.mark.parametrize(("entropies", "counts"), [([0.1, 0.3], 1), ([0.1, 0.31], 0), ([0.2], 1), ([], 0)])
def test_an_adaptive_bonus_counts_where_the_entropy_of_the_step_itself_is_not_above_the_target(entropies, counts):
    assert needed(np.array(entropies), 0.2).tolist() == [counts] * len(entropies)
    config = validate({"name": "grpo", "entropy_target": 0.2, "entropy_coef": 0.01})
    assert get("grpo").needs(config).start
    if entropies:
        flat = [-1.0] * len(entropies)
        inputs = batch([flat], [flat], [1.5], entropy=[entropies], bonus=[[float(counts)] * len(entropies)])
        assert get("grpo").loss(inputs, config).terms["entropy"].tolist() == pytest.approx([-0.01 * counts * one for one in entropies])


def test_an_adaptive_bonus_asks_for_entropies_even_while_it_is_0():
    config = validate({"name": "grpo", "entropy_target": 0.2})
    assert get("grpo").needs(config).entropy
    assert not get("grpo").zero_advantage_is_zero_loss(config)
    state = get("grpo").next_state(config, get("grpo").state(config), {"entropy": 0.1, "learner/rollouts": 1.0})
    assert get("grpo").in_force(config, state).entropy_coef == pytest.approx(0.005)  # it starts from 0 and rises


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"entropy_target": 0.2, "entropy_coef_min": 0.5, "entropy_coef_max": 0.1},
            "entropy_coef_min=0.5 must not exceed entropy_coef_max=0.1",
        ),
        ({"entropy_delta": 0.1}, "entropy_delta has no effect without entropy_target: set entropy_target, or remove it"),
        ({"entropy_coef_min": 0.1}, "entropy_coef_min has no effect without entropy_target"),
        ({"entropy_coef_max": 0.1}, "entropy_coef_max has no effect without entropy_target"),
        ({"kl_horizon": 5.0}, "kl_horizon has no effect without kl_target"),
    ],
)
def test_options_without_effect_are_refused(options, said):
    for name, extra in itertools.product(("grpo", "ppo"), ({}, {"entropy_coef": 0.1})):
        with pytest.raises(ConfigError, match=said):
            validate({"name": name, **options, **extra})


def test_selected_tokens_of_zero_advantage_have_no_gradient():
    inputs = batch([[-1.0, -2.0]], [[-1.0, -2.5]], [0.0], keep=[[2.0, 0.0]])
    assert slopes(losses("dapo", inputs, top_entropy=0.5), inputs).tolist() == [0, 0]
