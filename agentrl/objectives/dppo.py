"""DPPO: a trust region in probability, not in ratio: tokens are left out once their probability has moved too far the right way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.policy import PolicyConfig, policy_objective
from agentrl.objectives.surrogate import importance_ratio

if TYPE_CHECKING:
    from agentrl.objectives.losses import TokenBatch

SMALLEST = 1e-6
"""Probabilities are kept this far from 0 and 1 inside logarithms."""


class DPPOConfig(PolicyConfig):
    """Options of DPPO."""

    reanchors: ClassVar[bool] = False
    name: Literal["dppo"] = "dppo"
    divergence: Literal["tv", "kl"] = "tv"
    """How far a token has moved: the difference of its probabilities, or the KL of having drawn it or not."""
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Distance from which on a token is left out; null is 0.15 for tv and 0.05 for kl."""
    ratio_max: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 10.0
    """Cap of the ratio as a weight: a token whose probability was tiny can have an enormous ratio inside the region; null has none."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    normalization: Normalization = "constant"


def trust_region(batch: TokenBatch, config: DPPOConfig) -> Losses:
    """-keep A r, r = policy / sampler; keep is 0 where the token has left the region in the direction that A pushes it.

    tv: |p - q| of the drawn token; kl: q log(q / p) + (1 - q) log((1 - q) / (1 - p)), p of the policy now, q of the sampler. A ratio
    above `ratio_max` keeps its gradient with that weight.

    Returns: loss [tokens]. Metrics [tokens]: `clip_ratio/{low,high,region}_mean`, 1 where a token was left out.

    Source: arXiv:2602.04879, binary approximations.
    """
    ratio = importance_ratio(batch.logprobs - batch.sampler_logprobs)
    now, then = batch.logprobs.detach().exp(), batch.sampler_logprobs.exp()
    if config.divergence == "tv":
        distance = (now - then).abs()
    else:
        p, q = now.clamp(SMALLEST, 1 - SMALLEST), then.clamp(SMALLEST, 1 - SMALLEST)
        distance = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    threshold = config.threshold if config.threshold is not None else (0.15 if config.divergence == "tv" else 0.05)
    far = distance > threshold
    low, high = far & (now < then) & (batch.advantages < 0), far & (now > then) & (batch.advantages > 0)
    keep = (~(low | high)).to(ratio.dtype)
    if config.ratio_max is not None:
        capped = ratio.detach().clamp(max=config.ratio_max)
        ratio = capped * (batch.logprobs - batch.logprobs.detach()).exp()
    hits = {"low": low, "high": high, "region": low | high}
    return Losses(
        per="token",
        loss=-keep * batch.advantages * ratio,
        metrics={f"clip_ratio/{name}_mean": hit.to(ratio.dtype) for name, hit in hits.items()},
    )


DPPO = policy_objective(
    "dppo",
    DPPOConfig,
    trust_region,
    formula=(
        "-keep A r, r = policy / sampler; keep = 0 where the token's divergence exceeds the threshold and A pushes it further\n"
        "tv: |p - q|; kl: KL of (q, 1 - q) from (p, 1 - p); sum over tokens / (rollouts x max_tokens)"
    ),
    source="arXiv:2602.04879",
    summary="Leaves tokens out by how far their probability has moved; rare tokens are not clipped for a large ratio alone.",
    paper={"threshold": "0.15 (tv), 0.05 (kl)", "ratio_max": "10"},
)
