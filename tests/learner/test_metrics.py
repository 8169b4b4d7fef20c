from __future__ import annotations

import learner_fakes as fakes
import pytest
import torch

from agentrl.learner.batch import Part
from agentrl.learner.metrics import StepMetrics
from agentrl.learner.ranks import start
from agentrl.objectives import Losses, TokenBatch


def token_batch(logprobs: list[float], sampler: list[float], rollout: list[int]) -> TokenBatch:
    count = max(rollout) + 1
    return TokenBatch(
        logprobs=torch.tensor(logprobs, requires_grad=True),
        sampler_logprobs=torch.tensor(sampler),
        advantages=torch.ones(len(rollout)),
        rollout=torch.tensor(rollout),
        num_rollouts=count,
        rollout_advantages=torch.ones(count),
    )


def test_ratios_are_taken_before_any_clip_and_means_over_the_whole_step() -> None:
    metrics = StepMetrics()
    log2 = 0.6931472
    for logprobs, rollout in (([-1.0 + log2, -1.0], [0, 0]), ([-1.0 - log2], [0])):
        batch = token_batch(logprobs, [-1.0] * len(logprobs), rollout)
        losses = Losses(per="token", loss=batch.logprobs, metrics={"hits": torch.ones(len(logprobs))})
        metrics.add(batch, losses, {"loss": losses.loss.sum() * 0.5}, torch.full((len(logprobs),), 0.25))
    metrics.count(tokens=7.0)
    part = Part(active=(), num_rollouts=2, num_tokens=4, num_pairs=0)
    figures = metrics.gather(start(fakes.run_config()), part)
    assert figures["sampling/importance_sampling_ratio/min"] == pytest.approx(0.5)
    assert figures["sampling/importance_sampling_ratio/max"] == pytest.approx(2.0)
    assert figures["sampling/importance_sampling_ratio/mean"] == figures["policy/ratio_mean"] == pytest.approx(3.5 / 3)
    assert figures["sampling/sampling_logp_difference/mean"] == pytest.approx(2 * log2 / 3)
    assert figures["sampling/sampling_logp_difference/max"] == pytest.approx(log2)
    assert figures["sampling/ratio_outside_0.9_1.1"] == pytest.approx(2 / 3)
    assert figures["entropy"] == pytest.approx(0.25)
    assert figures["hits"] == pytest.approx(3 / 4)  # the fourth token was left out: it counts as 0
    assert figures["loss"] == pytest.approx(-1.5)
    assert figures["learner/tokens"] == 7.0


def test_metrics_of_rollouts_are_means_over_rollouts() -> None:
    metrics = StepMetrics()
    batch = token_batch([-1.0, -1.0, -1.0], [-1.0] * 3, [0, 0, 1])
    losses = Losses(per="rollout", loss=torch.zeros(2), metrics={"length": torch.tensor([2.0, 1.0])})
    metrics.add(batch, losses, {"loss": losses.loss.sum()}, torch.zeros(3))
    part = Part(active=(), num_rollouts=2, num_tokens=3, num_pairs=0)
    assert metrics.gather(start(fakes.run_config()), part)["length"] == pytest.approx(1.5)
