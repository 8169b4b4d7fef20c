from __future__ import annotations

import pytest
import torch

from agentrl import objectives
from agentrl.errors import ConfigError
from agentrl.objectives import GroupSignals, TokenBatch
from agentrl.objectives.supervised import WARM_START_NLL, SupervisedConfig, negative_log_likelihood

CONFIG = SupervisedConfig()


def batch(logprobs, values=None):
    return TokenBatch(
        logprobs=logprobs,
        sampler_logprobs=torch.full_like(logprobs.detach(), -9.0),
        advantages=torch.zeros_like(logprobs.detach()),
        rollout=torch.zeros(len(logprobs), dtype=torch.int64),
        num_rollouts=1,
        rollout_advantages=torch.zeros(1),
        values=values,
    )


def test_the_loss_is_minus_the_log_prob_and_the_sampler_does_not_matter():
    logprobs = torch.tensor([-0.5, -2.0], requires_grad=True)
    losses = negative_log_likelihood(batch(logprobs), CONFIG)
    assert losses.per == "token"
    assert losses.loss.tolist() == [0.5, 2.0]
    assert losses.metrics["nll"].tolist() == [0.5, 2.0]
    losses.loss.sum().backward()
    assert logprobs.grad.tolist() == [-1.0, -1.0], "a step makes each token likelier"


def test_a_critic_is_in_the_graph_and_learns_nothing():
    values = torch.tensor([3.0, -1.0], requires_grad=True)
    losses = negative_log_likelihood(batch(torch.tensor([-0.5, -2.0]), values), CONFIG)
    assert losses.loss.tolist() == [0.5, 2.0]
    losses.loss.sum().backward()
    assert values.grad.tolist() == [0.0, 0.0]


def test_it_asks_for_nothing_and_is_no_online_objective():
    needs = WARM_START_NLL.needs(CONFIG)
    assert (needs.group_size, needs.reference, needs.start) == (1, False, False)
    assert WARM_START_NLL.normalization(CONFIG) == "token_mean"
    assert [one.tolist() for one in WARM_START_NLL.advantages([GroupSignals(rewards=torch.ones(3).numpy())], CONFIG)] == [[0, 0, 0]]
    with pytest.raises(ConfigError, match="no objective is called 'warm_start_nll'"):
        objectives.get("warm_start_nll")
