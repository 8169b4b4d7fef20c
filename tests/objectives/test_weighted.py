from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import batch, losses, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import validate


def at(log_ratios, given_, *, sampler=-2.0, dtype=torch.float64):
    """One rollout for each log(policy / sampler)."""
    return batch([[sampler + value] for value in log_ratios], [[sampler] for _ in log_ratios], given_, dtype=dtype)


def slope_of(name, inputs, **options):
    return slopes(losses(name, inputs, **options), inputs).tolist()


LOGS = (math.log(0.25), 0.0, math.log(3), math.log(8))


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    """Setting the weight to 0 outside the band is another method, and leaves these tokens without a gradient."""
    inputs = at(LOGS, [1.0] * 4)
    assert slope_of("cispo", inputs) == pytest.approx([-0.25, -1, -3, -5])
    assert slope_of("cispo", inputs, ratio_min=0.5, ratio_max=2) == pytest.approx([-0.5, -1, -2, -2])
    ratio = torch.tensor([0.25, 1, 3, 8], dtype=torch.float64)
    zeroed = -torch.where((ratio < 0.5) | (ratio > 2), 0.0, ratio)
    assert slope_of("cispo", inputs, ratio_min=0.5, ratio_max=2)[0] < zeroed[0] == 0
    assert slope_of("grpo", inputs)[2:] == [0, 0]  # the clipped surrogate drops them too
    assert slope_of("cispo", at(LOGS, [-1.0] * 4)) == pytest.approx([0.25, 1, 3, 5])


def test_cispo_bounds_are_absolute():
    """`ratio_max` is no epsilon on top of 1: taken for one, every weight would be 0.2."""
    with pytest.raises(ConfigError, match="ratio_max"):
        validate({"name": "cispo", "ratio_max": 0.2})
    with pytest.raises(ConfigError, match="ratio_min"):
        validate({"name": "cispo", "ratio_min": 1.0})
    found = losses("cispo", at(LOGS, [1.0, 1.0, 1.0, -1.0]), ratio_max=2.0)
    assert found.metrics["cispo_clip_ratio"].tolist() == [0, 0, 1, 0]


def test_aipo_is_capped_on_one_side():
    assert slope_of("aipo", at(LOGS, [1.0, 1.0, 1.0, -1.0])) == pytest.approx([-0.25, -1, -3, 4])
    assert slope_of("aipo", at(LOGS, [1.0] * 4), ratio_max=1.0) == pytest.approx([-0.25, -1, -1, -1])


def test_reinforce_without_a_cap_is_the_ratio_itself():
    inputs = at(LOGS, [2.0] * 4)
    assert slope_of("reinforce", inputs, ratio_max=None) == pytest.approx([-0.5, -2, -6, -16])
    assert slope_of("reinforce", inputs) == pytest.approx([-0.5, -2, -6, -10])
    assert losses("reinforce", inputs).metrics["clip_ratio/high_mean"].tolist() == [0, 0, 0, 1]
    assert not losses("reinforce", inputs, ratio_max=None).metrics["clip_ratio/high_mean"].any()


# SAPO.


def test_sapo_is_the_plain_surrogate_at_a_ratio_of_1():
    """Whatever tau: the gradient is -A there, and falls off on both sides."""
    for tau in (0.1, 1.0, 7.0):
        options = {"temperature_pos": tau, "temperature_neg": tau}
        assert slope_of("sapo", at([0.0, 0.0], [1.5, -0.5]), **options) == pytest.approx([-1.5, 0.5])
        near = slope_of("sapo", at([-2.0, 0.0, 2.0], [1.0] * 3), **options)
        assert abs(near[0]) < 1  # the ratio itself is below 1 there
    assert abs(slope_of("sapo", at([2.0], [1.0]))[0]) < 0.1


@given(st.floats(-3, 3), st.floats(0.1, 5))
def test_the_slope_of_sapo_by_its_formula(log, tau):
    """4 p (1 - p) r A, p = sigmoid(tau (r - 1)); the other sign has the other tau."""
    ratio = math.exp(log)
    gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
    expected = 4 * gate * (1 - gate) * ratio
    assert slope_of("sapo", at([log], [1.0]), temperature_pos=tau)[0] == pytest.approx(-expected, rel=1e-9, abs=1e-12)
    assert slope_of("sapo", at([log], [-1.0]), temperature_neg=tau)[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_sapo_closes_far_outside_and_stays_finite():
    for dtype in (torch.float32, torch.float64):
        found = slope_of("sapo", at([-60.0, 60.0], [1.0, 1.0], dtype=dtype))
        assert found[0] == pytest.approx(0, abs=1e-8)
        assert found[1] == 0


# VESPO.


def phi(log, k, slope):
    return math.exp(slope + k * log - slope * math.exp(log))


@pytest.mark.parametrize("log", [-3.0, math.log(2 / 3), 0.0, math.log(1.5), 1.5])
def test_vespo_weighs_by_the_sign(log):
    inputs = at([log, log, log], [2.0, -2.0, 0.0])
    found = losses("vespo", inputs)
    good, bad = phi(log, 2, 3), phi(log, 3, 2)
    assert found.metrics["vespo/phi_seq_mean"].tolist() == pytest.approx([good, bad, good])
    assert slopes(found, inputs).tolist() == pytest.approx([-2 * good, 2 * bad, 0])


def test_the_peak_of_vespo_is_at_k_over_lambda():
    grid = [math.log(0.02 * step) for step in range(1, 200)]
    for given_, peak, height in ((1.0, 2 / 3, 1.208), (-1.0, 1.5, 1.242)):
        weights = losses("vespo", at(grid, [given_] * len(grid))).metrics["vespo/phi_seq_mean"]
        assert math.exp(grid[int(weights.argmax())]) == pytest.approx(peak, abs=0.021)
        assert weights.max().item() == pytest.approx(height, abs=2e-3)


def test_vespo_reads_whole_rollouts():
    """The product of a rollout's ratios, not a mean: two tokens of ratio e weigh as one of e^2."""
    inputs = batch([[-1.0, -1.0], [0.0], [-1.0]], [[-2.0, -2.0], [-2.0], [-2.0]], [1.0, 1.0, 1.0])
    weights = losses("vespo", inputs).metrics["vespo/phi_seq_mean"].tolist()
    assert weights == pytest.approx([phi(2, 2, 3)] * 3 + [phi(1, 2, 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"k_pos": 60.0, "lambda_pos": 1.0}, {"k_pos": 1e3, "lambda_pos": 1e-3}, {"k_pos": 1e-3, "lambda_pos": 1e3}]
)
def test_vespo_is_finite_at_its_extremes(dtype, options):
    """With k and lambda far apart phi itself leaves what a float holds: k ln(k / lambda) - k + lambda nats at its peak."""
    logs = [-1000.0, -20.0, -1.0, 0.0, 4.0, 20.0, 1000.0]
    found = losses("vespo", at(logs, [1.0] * len(logs), dtype=dtype), **options)
    weights = found.metrics["vespo/phi_seq_mean"]
    assert torch.isfinite(found.loss).all()
    assert (weights >= 0).all()
    assert weights.max() <= math.exp(20) * (1 + 1e-6)
    assert weights[3] == pytest.approx(1)


@pytest.mark.parametrize("name", ["cispo", "aipo", "vespo", "reinforce"])
def test_weights_carry_no_gradient(name):
    """The slope is the weight times -A: were the weight differentiated, it would be that times (1 + log-prob)."""
    inputs = at([0.1], [1.0])
    found = losses(name, inputs)
    assert slopes(found, inputs).item() == pytest.approx(found.loss.item() / inputs.logprobs.item())
