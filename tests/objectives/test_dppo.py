from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import batch, losses, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import validate

CHANCES = st.floats(1e-4, 1 - 1e-4)


def at(pairs, given_, dtype=torch.float64):
    """Tokens by their probability now and under the sampler."""
    return batch([[math.log(now)] for now, _ in pairs], [[math.log(then)] for _, then in pairs], given_, dtype=dtype)


def kept(pairs, given_, **options):
    return [1 - value for value in losses("dppo", at(pairs, given_), **options).metrics["clip_ratio/region_mean"].tolist()]


def binary_kl(now, then):
    return then * math.log(then / now) + (1 - then) * math.log((1 - then) / (1 - now))


def test_the_region_of_total_variation():
    pairs = [(0.7, 0.5), (0.64, 0.5), (0.3, 0.5), (0.36, 0.5), (0.02, 0.001)]
    assert kept(pairs, [1.0] * 5) == [0, 1, 1, 1, 1]  # ratio 20 of a rare token is inside: its probability hardly moved
    assert kept(pairs, [-1.0] * 5) == [1, 1, 0, 1, 1]
    assert kept(pairs, [1.0] * 5, threshold=0.01) == [0, 0, 1, 1, 0]
    assert kept([(0.75, 0.5), (0.25, 0.5)], [1.0, -1.0], threshold=0.25 + 1e-9) == [1, 1]


@given(CHANCES, CHANCES, st.sampled_from([-1.0, 1.0]), st.sampled_from(["tv", "kl"]))
def test_a_token_that_moves_back_towards_the_sampler_is_kept(now, then, sign, divergence):
    """However far it is: only the way that the advantage pushes can be outwards."""
    distance = abs(now - then) if divergence == "tv" else binary_kl(now, then)
    threshold = 0.15 if divergence == "tv" else 0.05
    outwards = (now > then) == (sign > 0) and now != then
    (found,) = kept([(now, then)], [sign], divergence=divergence)
    if not outwards or distance < threshold * (1 - 1e-9):
        assert found == 1
    elif distance > threshold * (1 + 1e-9):
        assert found == 0


def test_the_two_divergences_disagree_at_the_ends():
    """0.95 to 0.999 is a difference of 0.049 and a KL of 0.147: what is left of the other tokens has shrunk to a fiftieth."""
    assert kept([(0.999, 0.95)], [1.0]) == [1]
    assert kept([(0.999, 0.95)], [1.0], divergence="kl") == [0]
    assert kept([(0.999, 0.95)], [1.0], divergence="kl", threshold=0.2) == [1]
    assert binary_kl(0.999, 0.95) == pytest.approx(0.147, abs=1e-3)


def test_a_kept_token_has_the_gradient_of_the_ratio_and_another_none():
    inputs = at([(0.55, 0.5), (0.9, 0.5), (0.1, 0.5), (0.9, 0.5)], [2.0, 2.0, -2.0, -2.0])
    found = losses("dppo", inputs)
    assert found.loss.tolist() == pytest.approx([-2.2, 0, 0, 3.6])
    assert slopes(found, inputs).tolist() == pytest.approx([-2.2, 0, 0, 3.6])
    assert found.metrics["clip_ratio/high_mean"].tolist() == [0, 1, 0, 0]
    assert found.metrics["clip_ratio/low_mean"].tolist() == [0, 0, 1, 0]


def test_the_cap_of_the_ratio_keeps_the_gradient():
    pairs = [(0.1, 0.001), (0.005, 0.001)]  # ratios 100 and 5, both inside
    inputs = at(pairs, [1.0, 1.0])
    assert slopes(losses("dppo", inputs), inputs).tolist() == pytest.approx([-10, -5])
    assert losses("dppo", inputs).loss.tolist() == pytest.approx([-10, -5])
    assert slopes(losses("dppo", inputs, ratio_max=None), inputs).tolist() == pytest.approx([-100, -5])
    assert slopes(losses("dppo", inputs, ratio_max=2.0), inputs).tolist() == pytest.approx([-2, -2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"divergence": "kl"}, {"ratio_max": None}, {"divergence": "kl", "ratio_max": None}])
def test_probabilities_of_0_and_1_are_finite(dtype, options):
    """Certain tokens and impossible ones, on either side."""
    ends = [0.0, -1e-9, -1e-3, -1.0, -30.0, -300.0]
    now, then = zip(*[(one, other) for one in ends for other in ends], strict=True)
    for sign in (1.0, -1.0):
        inputs = batch([list(now)], [list(then)], [sign], dtype=dtype)
        found = losses("dppo", inputs, **options)
        assert torch.isfinite(found.loss).all()
        assert torch.isfinite(slopes(found, inputs)).all()
        equal = inputs.logprobs == inputs.sampler_logprobs
        assert not found.metrics["clip_ratio/region_mean"][equal].any()


def test_its_ratio_is_the_samplers_whatever_is_corrected():
    with pytest.raises(ConfigError, match="ratio of dppo is policy / sampler already"):
        validate({"name": "dppo", "corrections": [{"name": "tis"}]})
    inputs = batch([[-1.0]], [[-1.1]], [1.0], start_logprobs=[[-5.0]])
    assert losses("dppo", inputs).loss.item() == pytest.approx(-math.exp(0.1))
