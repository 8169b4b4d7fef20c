"""The clipped importance-sampling surrogate (PPO, Schulman et al. 2017, arXiv:1707.06347, eq. 7) that several objectives share.

The denominator of every ratio is the sampler's own log-prob, stamped on the token when it was drawn: what the ratio corrects for is
the distribution that the data came from, not the learner's at the start of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 nats (ratios to 2e-9 .. 5e8), where the gradient ends: a token that the sampler drew at log-prob -30 and
the policy now expects (log-ratio 27) gives a large, finite loss and no gradient, instead of infinities in a float32 or bfloat16 step."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Bounds of a ratio: `[1 - low, 1 + high]`, and `delta` where the advantage is negative."""

    low: float
    high: float
    delta: float | None = None


def importance_ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    """The exponential of a log-ratio in nats, finite whatever comes in short of NaN; same shape."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, clip: Clip) -> torch.Tensor:
    """-min(min(ratio, delta) * A, clamp(ratio, 1 - low, 1 + high) * A), elementwise.

    The plain clip bounds the pull on good tokens only; for A < 0 the ratio grows without bound, which `delta` stops (two-sided
    clipping, INTELLECT-2, arXiv:2505.07291).
    """
    import torch

    clipped = ratio.clamp(1 - clip.low, 1 + clip.high)
    capped = ratio if clip.delta is None else ratio.clamp(max=clip.delta)
    return -torch.minimum(capped * advantages, clipped * advantages)


def clip_metrics(ratio: torch.Tensor, advantages: torch.Tensor, clip: Clip) -> dict[str, torch.Tensor]:
    """1 where the clip cut the gradient off, 0 elsewhere, under TRL's names; `clip_ratio/delta_mean` only with `delta`. No gradient."""
    ratio = ratio.detach()
    low = (ratio < 1 - clip.low) & (advantages < 0)
    high = (ratio > 1 + clip.high) & (advantages > 0)
    hits = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}
    if clip.delta is not None:
        hits["clip_ratio/delta_mean"] = (ratio > clip.delta) & (advantages < 0)
    return {name: hit.to(ratio.dtype) for name, hit in hits.items()}
