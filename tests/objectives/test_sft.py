from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentrl import objectives
from agentrl.errors import ConfigError
from agentrl.objectives import GroupSignals, TokenBatch
from agentrl.objectives.sft import IMITATION, SFT, SftConfig, likelihood

CONFIG = SftConfig()
CHANCES = [0.6, 0.3, 0.2]


def batch(logprobs, values=None, correct=None, uniform=None):
    return TokenBatch(
        logprobs=logprobs,
        sampler_logprobs=torch.full_like(logprobs.detach(), -9.0),
        advantages=torch.zeros_like(logprobs.detach()),
        rollout=torch.zeros(len(logprobs), dtype=torch.int64),
        num_rollouts=1,
        rollout_advantages=torch.zeros(1),
        values=values,
        correct=correct,
        uniform_logprobs=uniform,
    )


def leaf(values):
    return torch.tensor(np.log(values), dtype=torch.float64, requires_grad=True)


def test_the_loss_is_minus_the_log_prob_and_the_sampler_does_not_matter():
    logprobs = leaf(CHANCES)
    losses = likelihood(batch(logprobs, correct=torch.tensor([True, False, True])), CONFIG)
    assert losses.per == "token"
    assert losses.loss.tolist() == pytest.approx([-math.log(chance) for chance in CHANCES])
    assert losses.metrics["nll"].tolist() == losses.loss.tolist()
    assert losses.metrics["mean_token_accuracy"].tolist() == [1, 0, 1]
    losses.loss.sum().backward()
    assert logprobs.grad.tolist() == [-1.0, -1.0, -1.0], "a step makes each token likelier"


def test_dft_weighs_each_token_with_its_probability_and_not_its_gradient():
    logprobs = leaf(CHANCES)
    losses = likelihood(batch(logprobs), SftConfig(loss="dft"))
    assert losses.loss.tolist() == pytest.approx([-chance * math.log(chance) for chance in CHANCES])
    assert losses.metrics["dft/weight"].tolist() == pytest.approx(CHANCES)
    assert losses.metrics["nll"].tolist() == pytest.approx([-math.log(chance) for chance in CHANCES])
    losses.loss.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-chance for chance in CHANCES])


def test_smoothing_gives_the_whole_vocabulary_a_share():
    logprobs, uniform = leaf(CHANCES), leaf([0.1, 0.05, 0.2])
    losses = likelihood(batch(logprobs, uniform=uniform), SftConfig(label_smoothing=0.1))
    expected = [-0.9 * math.log(chance) - 0.1 * math.log(mean) for chance, mean in zip(CHANCES, [0.1, 0.05, 0.2], strict=True)]
    assert losses.loss.tolist() == pytest.approx(expected)
    assert losses.metrics["nll"].tolist() == pytest.approx([-math.log(chance) for chance in CHANCES])
    losses.loss.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.9] * 3)
    assert uniform.grad.tolist() == pytest.approx([-0.1] * 3)


def test_a_critic_is_in_the_graph_and_learns_nothing():
    values = torch.tensor([3.0, -1.0], requires_grad=True)
    losses = likelihood(batch(torch.tensor([-0.5, -2.0]), values), CONFIG)
    assert losses.loss.tolist() == [0.5, 2.0]
    losses.loss.sum().backward()
    assert values.grad.tolist() == [0.0, 0.0]


def test_it_learns_rows_and_a_warm_start_the_same_of_rollouts():
    needs = SFT.needs(CONFIG)
    assert (needs.group_size, needs.reference, needs.start, needs.noise) == (1, False, False, 0)
    assert SFT.needs(SftConfig(neftune_alpha=5.0)).noise == 5
    assert SFT.normalization(CONFIG) == "token_mean"
    assert [one.tolist() for one in SFT.advantages([GroupSignals(rewards=torch.ones(3).numpy())], CONFIG)] == [[0, 0, 0]]
    assert (SFT.data, IMITATION.data) == ("supervised", None)
    assert IMITATION.loss is SFT.loss
    assert objectives.get("sft") is SFT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "nnl"}, r"objective\.loss. got 'nnl' \(text\); it must be one of nll, dft"),
        ({"loss": "dft", "label_smoothing": 0.1}, r"label_smoothing=0\.1 smooths the likelihood, and loss is dft"),
        ({"label_smoothing": 1}, r"objective\.label_smoothing.* got 1"),
        ({"neftune_alpha": -1}, r"objective\.neftune_alpha.* got -1"),
        ({"neftune_noise_alpha": 5}, r"unknown key .objective\.neftune_noise_alpha.; here it is called objective\.neftune_alpha"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        objectives.validate({"name": "sft", **options})
