"""The well-known mistake, as an objective: PPO's clip against the learner's own log-probs at the start of the step.

On data of a stale sampler that ratio is 1 in the first optimizer step, whatever the sampler was: nothing is clipped and nothing is
weighed, as if the learner had sampled the data itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from agentrl import objectives
from agentrl.objectives.grpo import GRPOConfig, clipped_tokens
from agentrl.objectives.policy import policy_objective

if TYPE_CHECKING:
    from agentrl.objectives.losses import Losses, TokenBatch


class UncorrectedConfig(GRPOConfig):
    """GRPO's options."""

    name: Literal["grpo_uncorrected"] = "grpo_uncorrected"  # type: ignore[assignment]  # every objective has its own name


def uncorrected_tokens(batch: TokenBatch, config: UncorrectedConfig) -> Losses:
    """GRPO's clipped surrogate with the learner's start of the step in the sampler's place."""
    return clipped_tokens(replace(batch, sampler_logprobs=batch.start), config)


objectives.register(
    policy_objective(
        "grpo_uncorrected",
        UncorrectedConfig,
        uncorrected_tokens,
        formula="-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = policy / learner at the start of the step",
        summary="GRPO that takes stale data for its own: a mistake, to compare with.",
    )
)
