from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentrl.examples import Example, Text
from agentrl.objectives import TokenBatch
from agentrl.objectives.prm import PROCESS_REWARD_MODEL, ProcessRewardModelConfig, labelled, step_labels

NAN = math.nan
LABELS = np.array([NAN, NAN, 1.0, NAN, 0.0, NAN], dtype=np.float32)


def example(labels=LABELS):
    text = Text(ids=np.arange(6, dtype=np.int32), trained=np.arange(6) > 1, prompt_length=2, labels=labels)
    return Example(where="row 1", texts=(text,), rewards=(0.0,))


def test_the_loss_is_that_of_the_label_at_the_end_of_each_step():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.float64)
    batch = TokenBatch(
        logprobs=nothing,
        sampler_logprobs=nothing,
        advantages=nothing,
        rollout=torch.tensor([0, 0, 1]),
        num_rollouts=2,
        rollout_advantages=nothing[:2],
        outputs=logits,
        columns={"label": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)},
    )
    losses = step_labels(batch, ProcessRewardModelConfig())
    right, third = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-3.0))
    assert losses.per == "token"
    assert losses.loss.tolist() == pytest.approx([-math.log(right), -math.log(1 - right), -math.log(third)])
    assert losses.metrics["accuracy"].tolist() == [1, 0, 1]
    losses.loss.sum().backward()
    assert logits.grad[:, 1].tolist() == pytest.approx([right - 1, right, 1 - third])
    assert logits.grad.sum(1).tolist() == pytest.approx([0, 0, 0])


def test_all_labels_are_learned_or_the_last_one_of_each_row():
    rows = [example(), example(np.array([NAN, NAN, 0.0, NAN, NAN, NAN], dtype=np.float32))]
    assert labelled(rows, ProcessRewardModelConfig()) is rows
    last = labelled(rows, ProcessRewardModelConfig(last_step_only=True))
    assert [np.flatnonzero(~np.isnan(row.texts[0].labels)).tolist() for row in last] == [[4], [2]]
    assert [float(np.nansum(row.texts[0].labels)) for row in last] == [0.0, 0.0]
    assert np.flatnonzero(~np.isnan(rows[0].texts[0].labels)).tolist() == [2, 4], "the rows themselves are as they were"


def test_it_learns_labels_of_steps():
    needs = PROCESS_REWARD_MODEL.needs(ProcessRewardModelConfig())
    assert (needs.output, needs.pairs, PROCESS_REWARD_MODEL.data) == ("labels", False, "stepwise")
    assert PROCESS_REWARD_MODEL.normalization(ProcessRewardModelConfig()) == "token_mean"
