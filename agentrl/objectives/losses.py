"""What a loss function reads of a micro-batch's trained tokens, and the unreduced losses that it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

Normalization = Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
"""How token losses become one number.

sequence_mean: mean over rollouts of each rollout's token mean (GRPO, arXiv:2402.03300 eq. 3).
token_mean: mean over all trained tokens of the step (DAPO, arXiv:2503.14476 eq. 8).
sequence_sum: mean over rollouts of each rollout's sum (LUSPO, arXiv:2602.05261).
constant: sum over tokens / (rollouts x max_tokens) (Dr.GRPO, arXiv:2503.20783).
"""

Per = Literal["token", "rollout", "pair", "chosen_token", "gold_token"]
"""What a loss is one a. `chosen_token` and `gold_token` are [tokens] of which only those of chosen and of gold texts count, divided by
their number in the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """The trained tokens of one micro-batch, in the order in which they stand in the packed rows. All tensors on one device."""

    logprobs: torch.Tensor
    """[tokens] nats under the policy now, with gradient."""
    sampler_logprobs: torch.Tensor
    """[tokens] nats under the policy that sampled, at the same temperature."""
    advantages: torch.Tensor
    """[tokens]."""
    rollout: torch.Tensor
    """[tokens] int64: which rollout of this micro-batch a token belongs to; a rollout is never split over micro-batches."""
    num_rollouts: int
    rollout_advantages: torch.Tensor
    """[rollouts]: where advantages differ within a rollout, that of its first token."""
    reference_logprobs: torch.Tensor | None = None
    """[tokens] nats under the reference, where the objective needs one."""
    teacher_logprobs: torch.Tensor | None = None
    """[tokens] nats under the teacher, where the objective needs them; of several teachers, the weighted mean of their log-probs."""
    start_logprobs: torch.Tensor | None = None
    """[tokens] nats under the learner as it began the step; None where the step has one optimizer step, whose policy it then is."""
    entropy: torch.Tensor | None = None
    """[tokens] nats of the policy's distribution now, with gradient."""
    values: torch.Tensor | None = None
    """[tokens] the critic's value of the state before the token, with gradient."""
    start_values: torch.Tensor | None = None
    """[tokens] the same as the step began."""
    returns: torch.Tensor | None = None
    """[tokens] what the critic is to predict."""
    staleness: torch.Tensor | None = None
    """[tokens] optimizer steps done since the weights that sampled the token."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[tokens] each: what `select` chose over the whole step."""
    correct: torch.Tensor | None = None
    """[tokens] bool: no token was more likely."""
    mean_logits: torch.Tensor | None = None
    """[tokens] the mean logit over the vocabulary, without gradient: for metrics."""
    collision: torch.Tensor | None = None
    """[tokens] log sum p^2 of the policy's distribution, without gradient, where the objective needs it."""
    uniform_logprobs: torch.Tensor | None = None
    """[tokens] the mean of log-probs over the vocabulary, with gradient, where the objective needs it."""
    divergence: torch.Tensor | None = None
    """[tokens] between a teacher's distribution and the policy's, with gradient."""
    outputs: torch.Tensor | None = None
    """[tokens, k] of a head that gives no log-probs, with gradient."""
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[rollouts] each: numbers of a dataset's row; NaN where a row has none of that name."""
    rival: torch.Tensor | None = None
    """[rollouts] bool: sampled by the rival policy."""
    chosen: torch.Tensor | None = None
    """[pairs] int64: the preferred rollout of each pair."""
    rejected: torch.Tensor | None = None
    """[pairs] int64: the other one."""
    gold: torch.Tensor | None = None
    """[pairs] int64: the gold text of each pair, where pairs have one."""

    @property
    def start(self) -> torch.Tensor:
        """[tokens] nats under the learner as it began the step, without gradient."""
        return self.logprobs.detach() if self.start_logprobs is None else self.start_logprobs

    def sum_by_rollout(self, values: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [rollouts], differentiable."""
        zeros = values.new_zeros(self.num_rollouts)
        if values.device.type == "cuda":  # where `index_add` adds in no fixed order, and this sorts first
            return zeros.index_put((self.rollout,), values, accumulate=True)
        return zeros.index_add(0, self.rollout, values)

    def mean_by_rollout(self, values: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [rollouts], differentiable."""
        return self.sum_by_rollout(values) / self.lengths.clamp(min=1)

    @property
    def lengths(self) -> torch.Tensor:
        """[rollouts] trained tokens of each."""
        return self.sum_by_rollout(self.logprobs.new_ones(len(self.rollout)))

    @property
    def place(self) -> torch.Tensor:
        """[tokens] int64: which of its rollout's trained tokens each is, from 0; a rollout's tokens stand together."""
        ends = self.lengths.long().cumsum(0)
        starts = ends - self.lengths.long()
        return self.rollout.new_ones(len(self.rollout)).cumsum(0) - 1 - starts[self.rollout]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Something added to the loss that is not weighted as tokens are."""

    per: Per
    loss: torch.Tensor
    """[tokens], [rollouts] or [pairs], as `per` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a loss function returns, unreduced."""

    per: Per
    loss: torch.Tensor
    """[tokens], [rollouts] or [pairs], as `per` says."""
    terms: Mapping[str, torch.Tensor | Term] = field(default_factory=dict)
    """What is added to the loss beside it, under its name in the metrics: [tokens], weighted as token losses are, or a `Term`."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """[tokens], [rollouts] or [pairs] each, as `per` says: averaged over the whole step under their names."""
    token_metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """[tokens] each, whatever `per` says."""
    some_metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[tokens], [rollouts] or [pairs] each, NaN where there is none of it: averaged over what is left in the whole step."""
    lowest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Under a name that begins with `min_`, values whose smallest in the whole step is told."""
    highest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Under a name that begins with `max_`, values whose largest is."""
    weights: torch.Tensor | None = None
    """[tokens] correction weights that `loss` was multiplied by, for the effective sample size."""
