"""RLOO: REINFORCE on whole completions, each against the mean reward of its siblings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.advantages import STD_EPS, sample_std
from agentrl.objectives.credit import Baseline, compared_rewards
from agentrl.objectives.grpo import ClipConfig
from agentrl.objectives.kl import KLEstimator
from agentrl.objectives.losses import Losses
from agentrl.objectives.policy import log_ratio_to_anchor, policy_objective
from agentrl.objectives.surrogate import clip_metrics, clipped_surrogate, importance_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import Credit, GroupSignals


class RLOOConfig(ClipConfig):
    """Options of RLOO; the clips are of a whole rollout's ratio."""

    per_rollout: ClassVar[bool] = True
    refuses: ClassVar[tuple[str, ...]] = (
        *ClipConfig.refuses,
        "normalize_advantages with baseline running or none: the spread can be 0 where the advantages are not",
    )
    name: Literal["rloo"] = "rloo"
    baseline: Baseline = "leave_one_out"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: KLEstimator = "k1"
    normalization: Literal["sequence_mean"] = "sequence_mean"
    """A rollout has one loss; their mean is taken."""
    normalize_advantages: bool = False
    """Divide the advantages by their standard deviation over the whole step (not in the paper)."""

    @model_validator(mode="after")
    def _normalized_around_a_mean(self) -> RLOOConfig:
        if self.normalize_advantages and self.baseline in ("running", "none"):
            raise ValueError(
                f"normalize_advantages divides by the advantages' own spread, and with baseline {self.baseline} that is 0 where all are "
                "equal and not 0: take another baseline, or remove it"
            )
        return self


def leave_one_out_advantages(groups: Sequence[GroupSignals], config: RLOOConfig) -> list[np.ndarray | Credit]:
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
    advantages = compared_rewards(groups, config)
    if not config.normalize_advantages:
        return advantages
    plain = [values for values in advantages if isinstance(values, np.ndarray)]
    compared = [values for values in plain if len(values) > 1]
    scale = sample_std(np.concatenate(compared)) + STD_EPS if compared else 1.0
    return [values / scale for values in plain]


def rollout_losses(batch: TokenBatch, config: RLOOConfig) -> Losses:
    """The clipped surrogate of each rollout, with the ratio of the whole rollout's probabilities.

    The paper is on policy, where the ratio is 1 and this is REINFORCE exactly. Off policy the ratio of all trained tokens makes the
    unclipped gradient unbiased; in long rollouts it leaves the clip range easily, which `clip_ratio/region_mean` shows.

    Args:
        batch: logprobs and the anchor's log-probs [tokens]; rollout_advantages [rollouts]; reference_logprobs [tokens] where beta > 0.
        config: clips.

    Returns: loss [rollouts], unreduced. Metrics [rollouts]: `clip_ratio/{low,high,region}_mean`, and with beta `kl/per_rollout`, the
    penalized sum in nats a rollout (TRL's `kl` is the same divided by tokens).

    Source: Ahmadian et al. 2024, arXiv:2402.14740; clip: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = importance_ratio(batch.sum_by_rollout(log_ratio_to_anchor(batch, config)))
    loss = clipped_surrogate(ratio, batch.rollout_advantages, config.clip)
    metrics = clip_metrics(ratio, batch.rollout_advantages, config.clip)
    if config.beta > 0:
        assert batch.reference_logprobs is not None, "beta > 0 asks for a reference"
        metrics["kl/per_rollout"] = batch.sum_by_rollout(batch.sampler_logprobs - batch.reference_logprobs).detach()
    return Losses(per="rollout", loss=loss, metrics=metrics)


RLOO = policy_objective(
    "rloo",
    RLOOConfig,
    rollout_losses,
    advantages=leave_one_out_advantages,
    # With beta the loss is zero too, but a skipped rollout would count as 0 in the KL metric; few rollouts have advantage 0 then.
    zero_advantage_is_zero_loss=lambda config: config.beta == 0 and config.entropy_coef == 0 and not config.adapts_entropy,
    formula=(
        "-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = policy / sampler of the whole rollout\n"
        "A_i = R_i - mean of the siblings' R, R = reward - beta sum over tokens of log(sampler / reference); mean over rollouts"
    ),
    source="Ahmadian et al. 2024, arXiv:2402.14740",
    summary="REINFORCE on whole rollouts, each against the mean of its siblings, the KL to the reference in the reward.",
    paper={"beta": "0.03 to 0.1", "group_size": "2 or 4"},
)
