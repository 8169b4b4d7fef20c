"""GRPO and the methods that differ from it by what is divided and where it is clipped: Dr.GRPO, DAPO.

Further methods are settings of them: INTELLECT-2's two-sided clip (arXiv:2505.07291) is `delta: 4`, Lite PPO (arXiv:2508.08221) is
`normalization: token_mean, scale_rewards: batch`, GDPO (arXiv:2601.05242) is `reward_aggregation: normalize_then_sum`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.policy import PolicyConfig, policy_objective, ratio_to_anchor
from agentrl.objectives.surrogate import Clip, clip_metrics, clipped_surrogate

if TYPE_CHECKING:
    from agentrl.objectives.losses import TokenBatch


class ClipConfig(PolicyConfig):
    """Options of every method with a clipped ratio."""

    refuses: ClassVar[tuple[str, ...]] = ("delta up to 1 + clip_high: it would stop tokens that the clip lets through",)
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The importance ratio is clipped below at `1 - clip_low`; 1 turns the lower clip off."""
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The ratio is clipped above at `1 + clip_high`; null takes `clip_low`. A very large number turns the upper clip off."""
    delta: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Cap of the ratio where the advantage is negative, above `1 + clip_high`; null leaves it uncapped."""

    @property
    def clip(self) -> Clip:
        """The bounds in force."""
        return Clip(low=self.clip_low, high=self.clip_low if self.clip_high is None else self.clip_high, delta=self.delta)

    @model_validator(mode="after")
    def _delta_beyond_the_clip(self) -> ClipConfig:
        bound = 1 + self.clip.high
        if self.delta is not None and self.delta <= bound:
            raise ValueError(f"delta={self.delta} must exceed 1 + clip_high = {bound}, or it would stop tokens that the clip lets through")
        return self


class GRPOConfig(ClipConfig):
    """Options of GRPO."""

    name: Literal["grpo"] = "grpo"


class DrGRPOConfig(ClipConfig):
    """Options of Dr.GRPO."""

    name: Literal["dr_grpo"] = "dr_grpo"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    normalization: Normalization = "constant"


class DAPOConfig(ClipConfig):
    """Options of DAPO; set `overlong_length` for its soft overlong punishment."""

    name: Literal["dapo"] = "dapo"
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 0.28
    normalization: Normalization = "token_mean"
    dynamic_sampling: bool = True


def clipped_tokens(batch: TokenBatch, config: ClipConfig) -> Losses:
    """The clipped surrogate of each token.

    Args:
        batch: logprobs, the anchor's log-probs and advantages [tokens].
        config: clips and delta.

    Returns: loss [tokens], unreduced. Metrics [tokens]: `clip_ratio/{low,high,region}_mean`, with delta `clip_ratio/delta_mean`.

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 3; two clips: DAPO, arXiv:2503.14476, eq. 10.
    """
    ratio = ratio_to_anchor(batch, config)
    loss = clipped_surrogate(ratio, batch.advantages, config.clip)
    return Losses(per="token", loss=loss, metrics=clip_metrics(ratio, batch.advantages, config.clip))


CLIPPED = "-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = policy / sampler of each token"

GRPO = policy_objective(
    "grpo",
    GRPOConfig,
    clipped_tokens,
    formula=f"{CLIPPED}\nA = (reward - mean of the group) / (std of the group + 1e-4); mean over rollouts of token means",
    source="Shao et al. 2024, arXiv:2402.03300, eq. 3",
    summary="Rewards relative to the group's mean, a clipped ratio a token.",
    paper={"beta": "0.04", "kl_correction": "false (plain k3)", "clip_low": "0.2", "group_size": "64"},
)
DR_GRPO = policy_objective(
    "dr_grpo",
    DrGRPOConfig,
    clipped_tokens,
    formula=f"{CLIPPED}\nA = reward - mean of the group; sum over tokens / (rollouts x sampling.max_tokens)",
    source="Liu et al. 2025, arXiv:2503.20783, sec. 3.2",
    summary="GRPO without the divisions by the group's std and by each rollout's length, which bias it.",
    paper={"beta": "0", "clip_low": "0.2"},
)
DAPO = policy_objective(
    "dapo",
    DAPOConfig,
    clipped_tokens,
    formula=f"{CLIPPED}\nA as in GRPO; mean over all tokens of the step; groups of equal rewards are played again elsewhere",
    source="Yu et al. 2025, arXiv:2503.14476, eq. 8 to 13",
    summary="GRPO with a higher upper clip, a token mean, dynamic sampling and soft overlong punishment.",
    paper={"clip_low": "0.2", "clip_high": "0.28", "overlong_length": "20480", "overlong_cache": "4096"},
)
