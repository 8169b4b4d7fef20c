"""The divergence from a reference policy: three estimates, in the loss or in the reward, and which gradient each gives.

With d = log policy - log reference of a sampled token, in nats (Schulman 2020, "Approximating KL divergence"):
k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.

| where | estimate | expected gradient, on policy | off policy |
|---|---|---|---|
| loss, weighted by the ratio | any | that of KL(policy || reference) at the sampled prefixes | the same |
| loss, plain | k1 | 0: refused | wrong |
| loss, plain | k2 | that of KL(policy || reference) | biased |
| loss, plain | k3 | that of KL(reference || policy) | biased |
| reward | k1 | that of KL(policy || reference), of whole rollouts | by the objective's own ratio |
| reward | k2, k3 | of the expected k2 or k3 as a reward: another penalty | by the objective's own ratio |

Sources: arXiv:2510.01555 and arXiv:2512.21852 (gradients); DeepSeek-V3.2, arXiv:2512.02556 (the weight).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.objectives.surrogate import MAX_LOG_RATIO

if TYPE_CHECKING:
    import torch

KLEstimator = Literal["k1", "k2", "k3"]


def reference_kl(
    logprobs: torch.Tensor, reference_logprobs: torch.Tensor, ratio: torch.Tensor | None, estimator: KLEstimator = "k3"
) -> torch.Tensor:
    """An estimate of KL(policy || reference) a token, in nats.

    Args:
        logprobs: [tokens] nats, with gradient.
        reference_logprobs: [tokens] nats.
        ratio: [tokens] importance ratio that weighs the estimate, or None for the plain one.
        estimator: k1, k2 or k3.

    Returns: [tokens]; d is capped at -20 against overflow of k3, and not above, where the pull to the reference matters most.

    Source: the module's table.
    """
    gap = (reference_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)  # -d
    if estimator == "k1":
        estimate = -gap
    elif estimator == "k2":
        estimate = gap.square() / 2
    else:
        estimate = gap.expm1() - gap
    if ratio is None:
        return estimate
    # The derivative of ratio * k3 is -ratio * gap, and so is the right one of the others. Written down, because what autograd would add
    # up to it, ratio * k3 and ratio * (1 - exp(gap)), cancels only in exact arithmetic and while neither cap binds.
    slope = -ratio * gap
    return (ratio * estimate).detach() + slope.detach() * (logprobs - logprobs.detach())


def penalty(logprobs: np.ndarray, reference_logprobs: np.ndarray, estimator: KLEstimator) -> np.ndarray:
    """[trained] float64 estimates of the KL of each token, as a reward takes them off: no gradient flows through them."""
    gap = np.minimum(reference_logprobs.astype(np.float64) - logprobs, MAX_LOG_RATIO)
    if estimator == "k1":
        return np.asarray(-gap)
    return np.asarray(gap**2 / 2 if estimator == "k2" else np.expm1(gap) - gap)


def adapted_coefficient(coefficient: float, kl: float, target: float, rollouts: float, horizon: float) -> float:
    """The next KL coefficient: larger while the KL is above its target, by at most 20% an error of one horizon.

    Args:
        coefficient: in force during the step.
        kl: of the step, in nats a rollout.
        target: in nats a rollout.
        rollouts: of the step.
        horizon: rollouts in which an error of the full 20% changes the coefficient by 20%.

    Source: Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return coefficient * (1 + error * min(1.0, rollouts / horizon))  # a step beyond the horizon must not turn its sign
