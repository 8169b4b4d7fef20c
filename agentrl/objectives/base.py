"""What an objective is: a config, a signal over groups and a pure loss over trained tokens. Objectives never divide.

The learner multiplies each loss by a weight whose denominator covers the whole step and all ranks, and alone reduces, accumulates,
clips and steps. So no objective can depend on how a step is cut into micro-batches, packings, ranks or orders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch

Normalization = Literal["sequence_mean", "token_mean", "constant"]
"""How token losses become one number.

sequence_mean: mean over rollouts of each rollout's token mean (GRPO, arXiv:2402.03300 eq. 3).
token_mean: mean over all trained tokens of the step (DAPO, arXiv:2503.14476 eq. 8).
constant: sum over tokens / (rollouts x max_tokens) (Dr.GRPO, arXiv:2503.20783).
"""


class ObjectiveConfig(BaseModel):
    """Base of every objective's own options; `name` is a `Literal` in each."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """The trained tokens of one micro-batch, in the order in which they stand in the packed rows. All tensors on one device."""

    logprobs: torch.Tensor
    """[tokens] nats under the policy now, with gradient."""
    sampler_logprobs: torch.Tensor
    """[tokens] nats under the policy that sampled, at the same temperature."""
    advantages: torch.Tensor
    """[tokens] of each token's rollout (or turn)."""
    rollout: torch.Tensor
    """[tokens] int64: which rollout of this micro-batch a token belongs to; a rollout is never split over micro-batches."""
    num_rollouts: int
    rollout_advantages: torch.Tensor
    """[rollouts]."""
    reference_logprobs: torch.Tensor | None = None
    """[tokens] nats under the frozen reference, where the objective needs one."""

    def sum_by_rollout(self, values: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [rollouts], differentiable."""
        return values.new_zeros(self.num_rollouts).index_add(0, self.rollout, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a loss function returns, unreduced."""

    per: Literal["token", "rollout"]
    loss: torch.Tensor
    """[tokens] or [rollouts], as `per` says."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """[tokens] or [rollouts] each (the learner tells by the length of `loss`): averaged over the whole step under their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSignals:
    """What a signal function sees of one group; unscorable members are already left out."""

    rewards: np.ndarray
    """[members] float64."""
    reference_kl: np.ndarray | None = None
    """[members] float64: sum over trained tokens of sampler log-prob - reference log-prob, where the objective asks for it."""


def _never(config: Any) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One row of the registry: who is compared with whom, and what loss follows."""

    name: str
    config: type[ObjectiveConfig]
    advantages: Callable[[Sequence[GroupSignals], Any], list[np.ndarray]]
    """All scorable groups of the step and the config -> [members] float64 a group. It sees the whole step: batch statistics are exact."""
    loss: Callable[[TokenBatch, Any], Losses]
    normalization: Callable[[Any], Normalization]
    needs_reference: Callable[[Any], bool]
    zero_advantage_is_zero_loss: Callable[[Any], bool] = _never
    """Whether loss and gradient of a rollout with advantage exactly 0 are identically 0, so that the learner may leave out its forward and
    backward. The rollout stays in every denominator, and counts as 0 in the objective's metrics."""
    min_group_size: int = 1
    """Smallest group in which the signal is defined."""
    source: str = ""
    """Paper, arXiv id, equation."""
    summary: str = ""
