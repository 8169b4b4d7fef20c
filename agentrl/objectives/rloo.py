"""RLOO: REINFORCE on whole completions, each against the mean reward of its siblings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from agentrl.objectives.advantages import STD_EPS, leave_one_out, sample_std
from agentrl.objectives.base import Losses, Objective, ObjectiveConfig
from agentrl.objectives.surrogate import Clip, clip_metrics, clipped_surrogate, importance_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.base import GroupSignals, TokenBatch


class RLOOConfig(ObjectiveConfig):
    """Options of RLOO."""

    name: Literal["rloo"] = "rloo"
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The importance ratio of a whole rollout is clipped below at `1 - clip_low`; 1 turns the lower clip off."""
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The ratio is clipped above at `1 + clip_high`; null takes `clip_low`. A very large number turns the upper clip off."""
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    """Weight of the KL to the reference, taken off the reward; above 0 the run holds a reference model."""
    normalize_advantages: bool = False
    """Divide the advantages by their standard deviation over the whole step (not in the paper)."""

    @property
    def clip(self) -> Clip:
        """The bounds in force."""
        return Clip(low=self.clip_low, high=self.clip_low if self.clip_high is None else self.clip_high)


def leave_one_out_advantages(groups: Sequence[GroupSignals], config: RLOOConfig) -> list[np.ndarray]:
    """Penalized reward minus the mean of the siblings' penalized rewards.

    R_i = reward_i - beta * sum over tokens (sampler log-prob - reference log-prob), the k1 estimate of the KL inside the reward, whose
    gradient is the right one of KL(policy || reference) on policy; A_i = R_i - mean of R_j over the other scorable members.

    Args:
        groups: every scorable group of the step; rewards [members], and reference_kl [members] where beta > 0.
        config: beta, normalize_advantages.

    Returns: [members] float64 a group. Exactly 0 where all R are equal, and in a group with one scorable member left. With
    `normalize_advantages` they are divided by their std (ddof = 1, groups of at least two) + 1e-4 over the step. The mean is not taken
    off: it is 0 in each group by construction, and so zeros stay exact zeros.

    Source: Ahmadian et al. 2024, arXiv:2402.14740.
    """
    advantages = [leave_one_out(_penalized(group, config.beta)) for group in groups]
    if not config.normalize_advantages:
        return advantages
    compared = [values for values in advantages if len(values) > 1]
    scale = sample_std(np.concatenate(compared)) + STD_EPS if compared else 1.0
    return [values / scale for values in advantages]


def _penalized(group: GroupSignals, beta: float) -> np.ndarray:
    if beta == 0:
        return group.rewards
    assert group.reference_kl is not None, "beta > 0 asks for the KL to a reference"
    result: np.ndarray = group.rewards - beta * group.reference_kl
    return result


def rollout_losses(batch: TokenBatch, config: RLOOConfig) -> Losses:
    """The clipped surrogate of each rollout, with the ratio of the whole rollout's probabilities.

    The paper is on policy, where the ratio is 1 and this is REINFORCE exactly. Off policy the ratio of all trained tokens makes the
    unclipped gradient unbiased; in long rollouts it leaves the clip range easily, which `clip_ratio/region_mean` shows.

    Args:
        batch: logprobs and sampler_logprobs [tokens]; rollout_advantages [rollouts]; reference_logprobs [tokens] where beta > 0.
        config: clips.

    Returns: loss [rollouts], unreduced. Metrics [rollouts]: `clip_ratio/{low,high,region}_mean`, and with beta `kl/per_rollout`, the
    penalized sum in nats a rollout (TRL's `kl` is the same divided by tokens).

    Source: Ahmadian et al. 2024, arXiv:2402.14740; clip: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = importance_ratio(batch.sum_by_rollout(batch.logprobs - batch.sampler_logprobs))
    loss = clipped_surrogate(ratio, batch.rollout_advantages, config.clip)
    metrics = clip_metrics(ratio, batch.rollout_advantages, config.clip)
    if config.beta > 0:
        assert batch.reference_logprobs is not None, "beta > 0 asks for a reference"
        metrics["kl/per_rollout"] = batch.sum_by_rollout(batch.sampler_logprobs - batch.reference_logprobs).detach()
    return Losses(per="rollout", loss=loss, metrics=metrics)


RLOO = Objective(
    name="rloo",
    config=RLOOConfig,
    advantages=leave_one_out_advantages,
    loss=rollout_losses,
    normalization=lambda config: "sequence_mean",
    needs_reference=lambda config: config.beta > 0,
    # With beta the loss is zero too, but a skipped rollout would count as 0 in the KL metric; few rollouts have advantage 0 then.
    zero_advantage_is_zero_loss=lambda config: config.beta == 0,
    min_group_size=2,
    source="Ahmadian et al. 2024, arXiv:2402.14740",
    summary="REINFORCE on whole rollouts, each against the mean of its siblings, the KL to the reference in the reward.",
)
