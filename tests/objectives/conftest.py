"""Builders that the objective tests share: batches of few tokens, and the learner's reductions written out naively."""

from __future__ import annotations

import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from agentrl.objectives import TokenBatch

sys.path.insert(0, str(Path(__file__).parent))  # builders that several modules here share


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def _batch_of(logprobs, sampler, advantages, reference=None, dtype=torch.float64):
    """A batch of rollouts given as lists of token values; `logprobs` may hold tensors, so that gradients flow on."""
    rollout = torch.cat([torch.full((len(row),), index, dtype=torch.int64) for index, row in enumerate(sampler)])
    per_rollout = torch.as_tensor(advantages, dtype=dtype)

    def column(rows):
        return torch.cat([torch.as_tensor(row, dtype=dtype) for row in rows])

    now = column(logprobs)
    if not now.requires_grad:
        now.requires_grad_()
    return TokenBatch(
        logprobs=now,
        sampler_logprobs=column(sampler),
        advantages=per_rollout[rollout],
        rollout=rollout,
        num_rollouts=len(sampler),
        rollout_advantages=per_rollout,
        reference_logprobs=None if reference is None else column(reference),
    )


def _reduced(losses, lengths, normalization, max_tokens):
    """One number, as the definitions of the normalizations say, rollout by rollout."""
    if losses.per == "rollout":
        return sum(losses.loss) / len(lengths)
    ends = list(accumulate(lengths))
    whole = sum(losses.terms.values(), losses.loss)
    rows = [whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    if normalization == "sequence_mean":
        return sum(row.sum() / len(row) for row in rows) / len(rows)
    total = sum(row.sum() for row in rows)
    return total / (sum(lengths) if normalization == "token_mean" else len(rows) * max_tokens)


@pytest.fixture(scope="session")
def batch_of():
    return _batch_of


@pytest.fixture(scope="session")
def reduced():
    return _reduced
