"""Objectives whose ratio is that of a whole rollout: GSPO, GSPO-token, GMPO, LUSPO.

Each token gets its rollout's loss, so that token corrections and per-turn advantages apply as they do elsewhere; a mean over the
rollout's tokens gives the paper's value back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from agentrl.objectives.grpo import ClipConfig
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.policy import log_ratio_to_anchor, policy_objective
from agentrl.objectives.surrogate import clip_metrics, clipped_surrogate, importance_ratio

if TYPE_CHECKING:
    from agentrl.objectives.losses import TokenBatch


class GSPOConfig(ClipConfig):
    """Options of GSPO. A mean log-ratio moves little, so its clips are hundreds of times tighter than a token's."""

    name: Literal["gspo"] = "gspo"
    clip_low: Annotated[float, Field(gt=0, le=1)] = 3e-4
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 4e-4


class GSPOTokenConfig(ClipConfig):
    """Options of GSPO-token."""

    name: Literal["gspo_token"] = "gspo_token"
    clip_low: Annotated[float, Field(gt=0, le=1)] = 3e-4
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 4e-4


class GMPOConfig(ClipConfig):
    """Options of GMPO; its clips are in nats of a token's log-ratio."""

    refuses: ClassVar[tuple[str, ...]] = ()
    name: Literal["gmpo"] = "gmpo"
    clip_low: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.4
    """The log-ratio of a token is clipped below at `-clip_low`."""
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The log-ratio is clipped above at `clip_high`; null takes `clip_low`."""
    delta: None = None


class LUSPOConfig(ClipConfig):
    """Options of LUSPO."""

    name: Literal["luspo"] = "luspo"
    clip_low: Annotated[float, Field(gt=0, le=1)] = 2e-3
    clip_high: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 2.5e-3
    normalization: Normalization = "sequence_sum"


def clipped_sequences(batch: TokenBatch, config: ClipConfig) -> Losses:
    """-min(s A, clip(s) A) with s the geometric mean of a rollout's ratios, on each of its tokens.

    Args:
        batch: logprobs and the anchor's log-probs [tokens]; advantages [tokens].
        config: clips and delta, of s.

    Returns: loss [tokens]. Metrics [tokens]: `clip_ratio/*`.

    Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7.
    """
    ratio = importance_ratio(batch.mean_by_rollout(log_ratio_to_anchor(batch, config)))[batch.rollout]
    loss = clipped_surrogate(ratio, batch.advantages, config.clip)
    return Losses(per="token", loss=loss, metrics=clip_metrics(ratio, batch.advantages, config.clip))


def clipped_sequences_by_token(batch: TokenBatch, config: ClipConfig) -> Losses:
    """The same value, with the gradient of each token through its own log-prob alone, for advantages that differ within a rollout.

    s_t = sg(s) * policy / sg(policy). Source: Zheng et al. 2025, arXiv:2507.18071, eq. 13 to 15.
    """
    ratio = importance_ratio(batch.mean_by_rollout(log_ratio_to_anchor(batch, config)))[batch.rollout].detach()
    ratio = ratio * (batch.logprobs - batch.logprobs.detach()).exp()
    loss = clipped_surrogate(ratio, batch.advantages, config.clip)
    return Losses(per="token", loss=loss, metrics=clip_metrics(ratio, batch.advantages, config.clip))


def geometric_mean(batch: TokenBatch, config: GMPOConfig) -> Losses:
    """-A times the geometric mean of a rollout's token ratios, each clipped first, on each of its tokens.

    The log-ratio of a token is clipped on the side to which the advantage's sign pushes it: above for A > 0, below for A < 0. Where
    advantages differ within a rollout, each token's sign counts.

    Args:
        batch: logprobs and the anchor's log-probs [tokens]; advantages [tokens].
        config: clips, in nats.

    Returns: loss [tokens]. Metrics [tokens]: `clip_ratio/{low,high,region}_mean`.

    Source: Zhao et al. 2025, arXiv:2507.20673, eq. 4.
    """
    log = log_ratio_to_anchor(batch, config)
    low, high = config.clip.low, config.clip.high
    bounded = log.clamp(-low, high)
    better = batch.advantages > 0
    kept = bounded.minimum(log).where(better, bounded.maximum(log))
    ratio = importance_ratio(batch.mean_by_rollout(kept))[batch.rollout]
    hits_low, hits_high = (log.detach() < -low) & ~better, (log.detach() > high) & better
    metrics = {"low": hits_low, "high": hits_high, "region": hits_low | hits_high}
    return Losses(
        per="token",
        loss=-ratio * batch.advantages,
        metrics={f"clip_ratio/{name}_mean": hit.to(ratio.dtype) for name, hit in metrics.items()},
    )


SEQUENCE = "-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean over the rollout's tokens of log(policy / sampler))"

GSPO = policy_objective(
    "gspo",
    GSPOConfig,
    clipped_sequences,
    formula=f"{SEQUENCE}\nmean over rollouts",
    source="Zheng et al. 2025, arXiv:2507.18071, eq. 5",
    summary="One ratio a rollout, the geometric mean of its tokens' ratios, clipped as a whole.",
    paper={"clip_low": "3e-4", "clip_high": "4e-4"},
)
GSPO_TOKEN = policy_objective(
    "gspo_token",
    GSPOTokenConfig,
    clipped_sequences_by_token,
    formula=f"{SEQUENCE}\nand s_t = sg(s) policy / sg(policy) in its place: each token's gradient through its own log-prob",
    source="Zheng et al. 2025, arXiv:2507.18071, eq. 13",
    summary="GSPO whose advantages may differ from token to token; equal to it where they do not.",
    paper={"clip_low": "3e-4", "clip_high": "4e-4"},
)
GMPO = policy_objective(
    "gmpo",
    GMPOConfig,
    geometric_mean,
    formula=(
        "-A exp(mean over the rollout's tokens of c_t), c_t = min(log r, clip(log r, -clip_low, clip_high)) for A > 0, max for A < 0\n"
        "mean over rollouts"
    ),
    source="Zhao et al. 2025, arXiv:2507.20673, eq. 4",
    summary="The geometric mean of clipped token ratios: outliers of single tokens weigh less than in GRPO.",
    paper={"clip_low": "0.4", "clip_high": "0.4"},
)
LUSPO = policy_objective(
    "luspo",
    LUSPOConfig,
    clipped_sequences,
    formula=f"|tokens of the rollout| times {SEQUENCE}\nmean over rollouts",
    source="arXiv:2602.05261, eq. 7",
    summary="GSPO weighted by length, so that a token counts the same in short and long rollouts.",
    paper={"clip_low": "2e-3", "clip_high": "2.5e-3"},
)
