"""Builders for the objectives' edge cases: signals of groups, batches with every column, and a policy that can be enumerated."""

from __future__ import annotations

import numpy as np
import torch

from agentrl.objectives import GroupSignals, MemberSignals, TokenBatch, get, validate

SHARED = ["grpo", "dr_grpo", "dapo", "gspo", "gspo_token", "gmpo", "luspo", "cispo", "aipo", "sapo", "vespo", "dppo", "m2po", "clip_cov"]
SHARED += ["kl_cov", "rloo", "reinforce", "decoupled_ppo", "ppo", "bnpo"]
"""Every objective with the options of `PolicyConfig` that learns from rewards alone."""


def member(turn=(0,), *, turn_rewards=None, index=0, rival=False, truncated=False, **columns):
    """A rollout by the turn of each of its tokens; sampler log-probs are -1 where not given."""
    turn = np.array(turn, dtype=np.int32)
    if turn_rewards is None:
        turn_rewards = np.zeros(turn.max() + 1 if len(turn) else 1)
    columns = {"sampler_logprobs": np.full(len(turn), -1.0)} | {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    turn_rewards = np.array(turn_rewards, dtype=np.float64)
    return MemberSignals(member=index, rival=rival, truncated=truncated, turn=turn, turn_rewards=turn_rewards, **columns)


def group(rewards, members=None, *, parts=None, **others):
    """A group as the learner hands it over; without members each rollout is one token."""
    if members is None:
        members = [member(index=index) for index in range(len(rewards))]
    columns = {name: np.array(values, dtype=np.float64) for name, values in (parts or {}).items()}
    others = {"size": len(rewards)} | others
    return GroupSignals(rewards=np.array(rewards, dtype=np.float64), members=tuple(members), parts=columns, **others)


def advantages(name, groups, **options):
    """What an objective gives these groups under these options."""
    return get(name).advantages(groups, validate({"name": name, **options}))


def batch(now, sampler, given, *, dtype=torch.float64, **columns):
    """Rollouts as lists of token values; `given` has an advantage for each rollout or for each token, `columns` are lists as `now` is."""
    rollout = torch.cat([torch.full((len(row),), index, dtype=torch.int64) for index, row in enumerate(sampler)])

    def column(rows):
        return torch.cat([torch.as_tensor(row, dtype=dtype) for row in rows])

    logprobs = column(now)
    if not logprobs.requires_grad:
        logprobs.requires_grad_()
    by_token = column(given) if isinstance(given[0], list) else torch.as_tensor(given, dtype=dtype)[rollout]
    firsts = [int((rollout == index).nonzero()[0]) for index in range(len(sampler))]
    known = {"values", "start_values", "returns", "reference_logprobs", "start_logprobs", "entropy", "staleness"}
    known |= {"teacher_logprobs", "divergence"}
    fields = {key: column(rows) for key, rows in columns.items() if key in known}
    fields |= {key: rows for key, rows in columns.items() if key in {"rival", "chosen", "rejected"}}
    chosen = {key: column(rows) for key, rows in columns.items() if key not in known | fields.keys()}
    return TokenBatch(
        logprobs=logprobs,
        sampler_logprobs=column(sampler),
        advantages=by_token,
        rollout=rollout,
        num_rollouts=len(sampler),
        rollout_advantages=by_token[firsts],
        columns=chosen,
        **fields,
    )


def losses(name, inputs, **options):
    """What an objective's loss gives for a batch."""
    return get(name).loss(inputs, validate({"name": name, **options}))


def slopes(found, inputs):
    """[tokens] the gradient of everything that a loss adds up to, with respect to the log-probs; 0 where there is none."""
    total = sum((getattr(term, "loss", term).sum() for term in found.terms.values()), found.loss.sum())
    if not total.requires_grad:
        return torch.zeros_like(inputs.logprobs)
    return torch.autograd.grad(total, inputs.logprobs)[0]


class Walk:
    """A policy over episodes of one or two turns of one token: token 0 ends the first, tokens 1 and 2 lead to states of their own."""

    EPISODES = ((0,), *((first, second) for first in (1, 2) for second in range(3)))

    def __init__(self, seed, *, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.logits = (scale * torch.randn(3, 3, generator=generator, dtype=torch.float64)).requires_grad_()

    def logprobs(self, episode):
        """[turns], differentiable."""
        rows = self.logits.log_softmax(-1)
        return torch.stack([rows[state, token] for state, token in zip((0, *episode[:-1]), episode, strict=True)])

    def chance(self, episode):
        return self.logprobs(episode).sum().exp()

    def gradient(self, value):
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]
