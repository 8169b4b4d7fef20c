from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Walk, advantages, batch, group, losses, member, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import get, validate
from agentrl.objectives.kl import adapted_coefficient, penalty, reference_kl

POLICY, SAMPLER, REFERENCE = Walk(11), Walk(12, scale=0.7), Walk(13, scale=0.8)
SINGLE = ((0,), (1,), (2,))
ESTIMATORS = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# The module's table, cell by cell.


def gradient_in_the_loss(sampler, **options):
    """Expected gradient of the KL term, over all episodes by their probability under the sampler."""
    total = torch.zeros((), dtype=torch.float64)
    for episode in Walk.EPISODES:
        drawn, reference = (one.logprobs(episode).detach() for one in (sampler, REFERENCE))
        inputs = batch([POLICY.logprobs(episode)], [drawn], [0.0], reference_logprobs=[reference])
        total = total + sampler.chance(episode).item() * losses("grpo", inputs, beta=1.0, **options).terms["kl"].sum()
    return POLICY.gradient(total)


def at_the_prefixes_of(sampler, divergence):
    """Gradient of a divergence of the policy in each state, weighted by how often the sampler comes there."""
    first = sampler.logits.softmax(-1)[0].detach()
    visits = torch.stack([torch.ones((), dtype=torch.float64), first[1], first[2]])
    now, reference = POLICY.logits.log_softmax(-1), REFERENCE.logits.detach().log_softmax(-1)
    return POLICY.gradient((visits * divergence(now, reference).sum(-1)).sum())


def forward_kl(now, reference):
    return now.exp() * (now - reference)


def reverse_kl(now, reference):
    return reference.exp() * (reference - now)


@pytest.mark.parametrize("sampler", [POLICY, SAMPLER], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_in_the_loss_weighted_by_the_ratio_it_is_the_gradient_of_the_kl(estimator, sampler):
    close(gradient_in_the_loss(sampler, kl_estimator=estimator), at_the_prefixes_of(sampler, forward_kl))


def test_plain_k1_in_the_loss_pulls_nowhere_and_is_refused():
    with pytest.raises(ConfigError, match=r"kl_estimator k1 in the loss without kl_correction has an expected gradient of 0: .* take k2"):
        validate({"name": "grpo", "beta": 0.1, "kl_estimator": "k1", "kl_correction": False})
    total = torch.zeros((), dtype=torch.float64)
    for one in Walk.EPISODES:
        total = total + POLICY.chance(one).item() * reference_kl(POLICY.logprobs(one), REFERENCE.logprobs(one).detach(), None, "k1").sum()
    assert POLICY.gradient(total).abs().max() < 1e-12


@pytest.mark.parametrize(("estimator", "divergence"), [("k2", forward_kl), ("k3", reverse_kl)])
def test_plain_in_the_loss(estimator, divergence):
    """On policy the KL's own gradient with k2, that of the other KL with k3; off policy neither."""
    plain = {"kl_estimator": estimator, "kl_correction": False}
    close(gradient_in_the_loss(POLICY, **plain), at_the_prefixes_of(POLICY, divergence))
    for one in (forward_kl, reverse_kl):
        right = at_the_prefixes_of(SAMPLER, one)
        assert (gradient_in_the_loss(SAMPLER, **plain) - right).norm() > 0.05 * right.norm()


def gradient_in_the_reward(sampler, estimator):
    """Expected gradient that RLOO ascends where the only reward is minus the KL, over all pairs of episodes."""
    config = validate({"name": "rloo", "beta": 1.0, "kl_estimator": estimator, "clip_low": 1, "clip_high": 1e8})
    total = torch.zeros((), dtype=torch.float64)
    for one in Walk.EPISODES:
        for other in Walk.EPISODES:
            drawn, reference = ([walk.logprobs(each).detach() for each in (one, other)] for walk in (sampler, REFERENCE))
            members = [
                member(range(len(each)), sampler_logprobs=drawn[at], reference_logprobs=reference[at])
                for at, each in enumerate((one, other))
            ]
            given_ = get("rloo").advantages([group([0.0, 0.0], members)], config)[0]
            inputs = batch([POLICY.logprobs(one), POLICY.logprobs(other)], drawn, given_, reference_logprobs=reference)
            chance = (sampler.chance(one) * sampler.chance(other)).item()
            total = total + chance * get("rloo").loss(inputs, config).loss.sum() / 2
    return POLICY.gradient(total)


@pytest.mark.parametrize("sampler", [POLICY, SAMPLER], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_in_the_reward_it_is_the_gradient_of_its_expectation(estimator, sampler):
    """With k1 on policy that is the KL of whole rollouts; off policy the penalty stays the sampler's, which the ratio does not change."""
    value = torch.zeros((), dtype=torch.float64)
    for episode in Walk.EPISODES:
        gaps = (sampler.logprobs(episode) - REFERENCE.logprobs(episode)).detach().tolist()
        value = value + POLICY.chance(episode) * sum(ESTIMATORS[estimator](gap) for gap in gaps)
    found = gradient_in_the_reward(sampler, estimator)
    close(found, POLICY.gradient(value))
    if sampler is POLICY:
        kl = sum(POLICY.chance(one) * (POLICY.logprobs(one) - REFERENCE.logprobs(one).detach()).sum() for one in Walk.EPISODES)
        right = POLICY.gradient(kl)
        assert (found - right).norm() < 1e-12 if estimator == "k1" else (found - right).norm() > 0.05 * right.norm()


# Values and caps.


@given(st.floats(-50, 50), st.floats(0.01, 100))
def test_values(gap, ratio):
    now, reference = torch.tensor([-60.0], dtype=torch.float64), torch.tensor([-60.0 - gap], dtype=torch.float64)
    for estimator, value in ESTIMATORS.items():
        expected = value(max(-20.0, gap))
        plain = reference_kl(now, reference, None, estimator).item()
        assert plain == pytest.approx(expected, rel=1e-9, abs=1e-9)
        weighted = reference_kl(now.requires_grad_(), reference, torch.tensor([ratio], dtype=torch.float64), estimator)
        assert weighted.item() == pytest.approx(ratio * expected, rel=1e-9, abs=1e-9)
        assert penalty(now.detach().numpy(), reference.numpy(), estimator)[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        if estimator != "k1":
            assert plain >= 0


@given(st.floats(-1e-8, 1e-8))
def test_k3_of_nearly_equal_probabilities_is_not_lost_to_rounding(gap):
    """exp(-d) - 1 + d, taken as it stands, is rounding of 1e-16 where the value is d^2 / 2."""
    found = penalty(np.array([-1.0]), np.array([-1.0 - gap]), "k3")[0]
    assert abs(found - gap**2 / 2) <= 2e-24 + 1e-8 * gap**2


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("now", "reference"), [(-1.0, -90.0), (-90.0, -1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_and_pull_back(estimator, now, reference, dtype):
    """Far above the reference the pull grows with the distance; far below it is that of 20 nats."""
    for corrected in (True, False):
        if estimator == "k1" and not corrected:
            continue
        inputs = batch([[now]], [[now]], [0.0], reference_logprobs=[[reference]], dtype=dtype)
        found = losses("grpo", inputs, beta=1.0, kl_estimator=estimator, kl_correction=corrected)
        slope = slopes(found, inputs).item()
        assert math.isfinite(found.terms["kl"].item())
        if now > reference:
            assert slope == pytest.approx(1 if estimator == "k3" and not corrected else 89, rel=1e-6)
        else:
            assert slope == pytest.approx(-20 if corrected else 0)


def test_the_penalty_of_rewards_is_exact_in_float64_whatever_it_is_given():
    found = penalty(np.array([-1.0], dtype=np.float32), np.array([-1.1], dtype=np.float32), "k1")
    assert found.dtype == np.float64
    assert found[0] == np.float64(np.float32(1.1)) - 1


# The adaptive coefficient.


@given(st.floats(1e-6, 10), st.floats(-5, 1e4), st.floats(1e-3, 100), st.integers(1, 10**5), st.floats(1, 1e6))
def test_the_coefficient_goes_the_right_way_by_at_most_a_fifth(beta, kl, target, rollouts, horizon):
    found = adapted_coefficient(beta, kl, target, rollouts, horizon)
    assert 0.8 * beta * (1 - 1e-12) <= found <= 1.2 * beta * (1 + 1e-12)
    assert (found > beta) <= (kl > target)
    assert (found < beta) <= (kl < target)
    far = abs(kl / target - 1) >= 0.2
    if far:
        assert found == pytest.approx(beta * (1 + math.copysign(0.2, kl - target) * min(1, rollouts / horizon)))


def test_the_coefficient_by_hand():
    assert adapted_coefficient(0.1, 6.0, 6.0, 100, 1000) == 0.1
    assert adapted_coefficient(0.1, 6.6, 6.0, 100, 1000) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapted_coefficient(0.1, 60.0, 6.0, 100, 1000) == pytest.approx(0.1 * 1.02)
    assert adapted_coefficient(0.1, 0.0, 6.0, 512, 10) == pytest.approx(0.08)  # not 0.1 (1 - 0.2 * 51.2), whose sign is the other one


def test_what_adapts_is_in_force_and_counts_a_rollout():
    objective, config = get("grpo"), validate({"name": "grpo", "beta": 0.1, "kl_target": 3.0, "kl_horizon": 10.0})
    state = objective.state(config)
    assert state == {"beta": 0.1}
    # 0.05 nats a token over 400 tokens in 4 rollouts: 5 nats a rollout, above the target: 0.1 (1 + 0.2 * 4 / 10).
    figures = {"kl": 0.05, "learner/counted_tokens": 400.0, "learner/rollouts": 4.0, "learner/reward_mean": 0.0}
    later = objective.next_state(config, state, figures)
    assert later == {"beta": pytest.approx(0.108)}
    assert objective.in_force(config, later).beta == pytest.approx(0.108)
    assert config.beta == 0.1
    assert objective.next_state(config, later, {"learner/rollouts": 0.0}) == later  # nothing was trained
    assert objective.state(validate({"name": "grpo", "beta": 0.1})) == {}
    with pytest.raises(ConfigError, match="kl_target adapts beta, and beta is 0"):
        validate({"name": "grpo", "kl_target": 3.0})


def test_the_term_is_told_apart_from_the_metric():
    inputs = batch([[-1.0]], [[-1.2]], [0.0], reference_logprobs=[[-1.5]])
    found = losses("grpo", inputs, beta=0.25)
    assert found.terms["kl"].item() == pytest.approx(0.25 * found.token_metrics["kl"].item())
    assert not found.token_metrics["kl"].requires_grad
    assert "kl" not in losses("grpo", inputs, beta=0.25, kl_in="reward").terms
    assert advantages("grpo", [group([1.0, 0.0])], beta=0.0)[0][0] > 0
