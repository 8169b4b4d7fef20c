"""GRPO: rewards compared within a group, a clipped ratio for each token. DAPO and Dr.GRPO are settings of it.

| method | settings |
|---|---|
| GRPO, arXiv:2402.03300 | the defaults; with the paper's KL term `beta: 0.04`, `kl_correction: false` |
| DAPO, arXiv:2503.14476 | `normalization: token_mean`, `clip_high: 0.28` |
| Dr.GRPO, arXiv:2503.20783 | `normalization: constant`, `scale_rewards: none` |
| INTELLECT-2's two-sided clip, arXiv:2505.07291 | `delta: 4` |
| Lite PPO, arXiv:2508.08221 | `normalization: token_mean`, `scale_rewards: batch` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.advantages import STD_EPS, deviations, sample_std
from agentrl.objectives.base import Losses, Normalization, Objective, ObjectiveConfig
from agentrl.objectives.surrogate import MAX_LOG_RATIO, Clip, clip_metrics, clipped_surrogate, importance_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agentrl.objectives.base import GroupSignals, TokenBatch


class GRPOConfig(ObjectiveConfig):
    """Options of GRPO and of the methods that differ from it by a setting."""

    name: Literal["grpo"] = "grpo"
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The importance ratio of a token is clipped below at `1 - clip_low`; 1 turns the lower clip off."""
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The ratio is clipped above at `1 + clip_high`; null takes `clip_low`. DAPO: 0.28. A very large number turns the upper clip off."""
    delta: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Cap of the ratio where the advantage is negative, above `1 + clip_high`; null leaves it uncapped."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What the centred rewards are divided by: the standard deviation of their group, that of the whole step, or nothing (Dr.GRPO)."""
    normalization: Normalization = "sequence_mean"
    """How token losses become one number: `sequence_mean` (GRPO), `token_mean` (DAPO) or `constant` (Dr.GRPO)."""
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the KL term to the reference in the loss; above 0 the run holds a reference model."""
    kl_correction: bool = True
    """Weigh the KL estimate by the token's ratio, which makes its expected gradient that of the KL; false is the GRPO paper's plain k3."""

    @property
    def clip(self) -> Clip:
        """The bounds in force."""
        return Clip(low=self.clip_low, high=self.clip_low if self.clip_high is None else self.clip_high, delta=self.delta)

    @model_validator(mode="after")
    def _delta_beyond_the_clip(self) -> GRPOConfig:
        bound = 1 + self.clip.high
        if self.delta is not None and self.delta <= bound:
            raise ValueError(f"delta={self.delta} must exceed 1 + clip_high = {bound}, or it would stop tokens that the clip lets through")
        return self


def group_advantages(groups: Sequence[GroupSignals], config: GRPOConfig) -> list[np.ndarray]:
    """(reward - group mean) / (std + 1e-4), each group over its scorable members.

    Args:
        groups: every scorable group of the step; rewards [members].
        config: `scale_rewards` chooses the std: of the group, of all rewards of the step, or no division.

    Returns: [members] float64 a group. Exactly 0 in a group whose rewards are all equal, and in a group with one scorable member
    left: it has nobody to be compared with.

    Source: Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2; std with ddof = 1 (see `sample_std`).
    """
    centred = [deviations(group.rewards) for group in groups]
    if config.scale_rewards == "none" or not groups:
        return centred
    if config.scale_rewards == "batch":
        scale = sample_std(np.concatenate([group.rewards for group in groups])) + STD_EPS
        return [values / scale for values in centred]
    return [values / (sample_std(group.rewards) + STD_EPS) for values, group in zip(centred, groups, strict=True)]


def reference_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, ratio: torch.Tensor | None) -> torch.Tensor:
    """The k3 estimate of KL(policy || reference) a token: exp(d) - d - 1 with d = reference - policy, in nats, never negative.

    The plain estimate, though its value is unbiased, has on policy the expected gradient of KL(reference || policy)
    (arXiv:2510.01555), and off policy estimates neither. Weighted by the ratio both value and gradient are those of the KL at the
    prefixes that were sampled.

    Args:
        logprobs: [tokens] nats, with gradient.
        reference_logprobs: [tokens] nats.
        ratio: [tokens] importance ratio that weighs the estimate, or None for the plain one.

    Returns: [tokens]; d is capped at +20 against overflow, and not below, where the pull to the reference matters most.

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 4; the weight: DeepSeek-V3.2, arXiv:2512.02556.
    """
    gap = (reference_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    estimate = gap.expm1() - gap
    if ratio is None:
        return estimate
    # The derivative of ratio * k3 is -ratio * d. Written down, because what autograd would add up to it, ratio * k3 and
    # ratio * (1 - exp(d)), cancels only in exact arithmetic and while neither cap binds.
    slope = -ratio * gap
    return (ratio * estimate).detach() + slope.detach() * (logprobs - logprobs.detach())


def token_losses(batch: TokenBatch, config: GRPOConfig) -> Losses:
    """The clipped surrogate of each token, plus `beta` times its KL estimate.

    Args:
        batch: logprobs, sampler_logprobs and advantages [tokens]; reference_logprobs [tokens] where beta > 0.
        config: clips, delta, beta, kl_correction.

    Returns: loss [tokens], unreduced. Metrics [tokens]: `clip_ratio/{low,high,region}_mean`, with delta `clip_ratio/delta_mean`, with
    beta `kl` (nats a token).

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 3; two clips: DAPO, arXiv:2503.14476, eq. 10.
    """
    ratio = importance_ratio(batch.logprobs - batch.sampler_logprobs)
    loss = clipped_surrogate(ratio, batch.advantages, config.clip)
    metrics = clip_metrics(ratio, batch.advantages, config.clip)
    if config.beta > 0:
        assert batch.reference_logprobs is not None, "beta > 0 asks for a reference"
        kl = reference_kl(batch.logprobs, batch.reference_logprobs, ratio if config.kl_correction else None)
        loss = loss + config.beta * kl
        metrics["kl"] = kl.detach()
    return Losses(per="token", loss=loss, metrics=metrics)


GRPO = Objective(
    name="grpo",
    config=GRPOConfig,
    advantages=group_advantages,
    loss=token_losses,
    normalization=lambda config: config.normalization,
    needs_reference=lambda config: config.beta > 0,
    zero_advantage_is_zero_loss=lambda config: config.beta == 0,
    min_group_size=2,
    source="Shao et al. 2024, arXiv:2402.03300, eq. 3",
    summary="Rewards relative to the group's mean, a clipped ratio a token; DAPO and Dr.GRPO by options.",
)
