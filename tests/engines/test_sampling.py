from __future__ import annotations

import numpy as np
import pytest
import torch

from agentrl.engines.sampling import Truncation, draw


def drawn(logits, uniforms, **options):
    return draw(logits, options.pop("temperatures", None), options.pop("greedy", None), np.asarray(uniforms), **options)


@pytest.mark.parametrize("vocabulary", [2, 3, 16, 97, 512, 1000, 5003])
def test_a_draw_inverts_the_cumulative_distribution(vocabulary):
    torch.manual_seed(vocabulary)
    logits = torch.randn(50, vocabulary) * 3
    uniforms = np.random.default_rng(0).random(50)
    ids, logprobs = drawn(logits, uniforms)
    shares = torch.softmax(logits.double(), -1).numpy()
    heights = np.cumsum(shares, -1)
    for row, (token, uniform) in enumerate(zip(ids, uniforms, strict=True)):
        below = heights[row, token - 1] if token else 0.0
        assert below - 1e-6 <= uniform <= heights[row, token] + 1e-6
        assert abs(np.log(shares[row, token]) - logprobs[row]) < 1e-5


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_hit_tokens_with_mass(uniform):
    logits = torch.full((1, 700), -torch.inf)
    logits[0, [5, 300, 640]] = torch.tensor([0.0, 1.0, -1.0])
    ids, _ = drawn(logits, [uniform])
    assert ids[0] == (5 if uniform == 0 else 640)


def test_a_row_draws_the_same_whatever_it_shares_the_batch_with():
    torch.manual_seed(0)
    logits = torch.randn(8, 300)
    uniforms = np.random.default_rng(1).random(8)
    together, _ = drawn(logits, uniforms)
    alone = [drawn(logits[row : row + 1], uniforms[row : row + 1])[0][0] for row in range(8)]
    assert together.tolist() == alone


def test_temperatures_are_each_row_its_own_and_greedy_ignores_the_number():
    torch.manual_seed(0)
    logits = torch.randn(3, 40)
    temperatures = np.array([0.5, 1.0, 2.0], dtype=np.float32)
    ids, logprobs = drawn(logits, [0.3, 0.9, 0.7], temperatures=temperatures, greedy=np.array([False, True, False]))
    expected = torch.log_softmax(logits / torch.from_numpy(temperatures)[:, None], -1)
    assert ids[1] == logits[1].argmax()
    assert np.allclose(logprobs, expected[range(3), ids], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.49}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"min_p": 0.4}, {0, 1}),
        ({"min_p": 0.1, "top_k": 3, "top_p": 0.95}, {0, 1, 2}),
        ({"top_k": 2, "top_p": 0.6}, {0}),  # 0.5 of 0.8 is 0.625
    ],
)
def test_truncation_draws_from_the_part_and_scores_under_the_whole(options, kept):
    shares = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    settings = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, **options}
    uniforms = np.linspace(0, 0.999, 200)
    truncations = [Truncation(row=row, **settings) for row in range(200)]
    ids, logprobs = drawn(shares.log().expand(200, -1), uniforms, truncations=truncations)
    assert set(ids.tolist()) == kept
    assert np.allclose(logprobs, shares.log()[ids], atol=1e-6)


def test_frequencies_are_those_of_the_distribution():
    shares = torch.tensor([0.6, 0.3, 0.1])
    ids, _ = drawn(shares.log().expand(20000, -1), np.random.default_rng(2).random(20000))
    assert np.allclose(np.bincount(ids, minlength=3) / 20000, shares, atol=0.015)
