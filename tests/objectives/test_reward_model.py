from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentrl.objectives import GroupSignals, TokenBatch
from agentrl.objectives.reward_model import REWARD_MODEL, RewardModelConfig, bradley_terry


def batch(scores, **parts):
    """Chosen and rejected texts in turn."""
    pairs = torch.arange(0, len(scores), 2)
    return TokenBatch(
        logprobs=torch.full_like(scores.detach(), torch.nan),
        sampler_logprobs=torch.full_like(scores.detach(), torch.nan),
        advantages=torch.zeros_like(scores.detach()),
        rollout=torch.arange(len(scores)),
        num_rollouts=len(scores),
        rollout_advantages=torch.zeros(len(scores)),
        outputs=scores[:, None],
        parts={name: torch.tensor(values, dtype=scores.dtype) for name, values in parts.items()},
        chosen=pairs,
        rejected=pairs + 1,
    )


def leaf(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def softplus(x):
    return math.log(1 + math.exp(x))


def test_the_loss_of_a_pair_and_its_slopes():
    scores = leaf([2.0, 0.5, -1.0, 1.0])
    losses = bradley_terry(batch(scores), RewardModelConfig())
    assert losses.per == "pair"
    assert losses.loss.tolist() == pytest.approx([softplus(-1.5), softplus(2.0)])
    losses.loss.sum().backward()
    first, second = 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-2.0))
    assert scores.grad.tolist() == pytest.approx([-first, first, -second, second])


def test_a_margin_has_to_be_beaten_and_a_row_without_one_has_none():
    losses = bradley_terry(batch(leaf([2.0, 0.5, -1.0, 1.0]), margin=[1.0, 1.0, math.nan, math.nan]), RewardModelConfig())
    assert losses.loss.tolist() == pytest.approx([softplus(-0.5), softplus(2.0)])
    assert losses.metrics["margin"].tolist() == [1.5, -2.0], "how far apart the scores are, whatever they have to be"


def test_centring_holds_scores_around_0():
    scores = leaf([2.0, 0.5])
    losses = bradley_terry(batch(scores), RewardModelConfig(center_coefficient=0.1))
    assert losses.loss.tolist() == pytest.approx([softplus(-1.5) + 0.1 * 2.5**2])
    losses.loss.sum().backward()
    slope = 1 / (1 + math.exp(1.5))
    assert scores.grad.tolist() == pytest.approx([-slope + 0.5, slope + 0.5])


def test_metrics_are_those_of_the_field():
    losses = bradley_terry(batch(leaf([2.0, 0.5, -1.0, 1.0, 3.0, 3.0])), RewardModelConfig())
    assert losses.metrics["accuracy"].tolist() == [1, 0, 0], "equal scores are not the right order"
    assert losses.metrics["mean_reward"].tolist() == [1.25, 0.0, 3.0]
    assert (float(losses.lowest["min_reward"].min()), float(losses.highest["max_reward"].max())) == (-1.0, 3.0)


def test_each_row_is_a_pair_unless_a_text_of_it_is_missing():
    groups = [GroupSignals(rewards=np.array([1.0, 0.0])), GroupSignals(rewards=np.array([1.0]))]
    assert [credit.pairs for credit in REWARD_MODEL.advantages(groups, RewardModelConfig())] == [[(0, 1)], []]
    needs = REWARD_MODEL.needs(RewardModelConfig())
    assert (needs.output, needs.pairs, needs.reference, REWARD_MODEL.data) == ("score", True, False, "preference")
