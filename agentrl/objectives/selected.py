"""Objectives that choose tokens over the whole step before the first backward pass: M2PO, Clip-Cov, KL-Cov."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.grpo import ClipConfig, clipped_tokens
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.policy import PolicyConfig, log_ratio_to_anchor, policy_needs, policy_objective, policy_select, ratio_to_anchor
from agentrl.objectives.surrogate import importance_ratio

if TYPE_CHECKING:
    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.needs import Needs
    from agentrl.objectives.signals import StepColumns

Share = Annotated[float, Field(gt=0, le=1)]


class M2POConfig(PolicyConfig):
    """Options of M2PO."""

    reanchors: ClassVar[bool] = False
    name: Literal["m2po"] = "m2po"
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.04
    """Largest mean square of log(policy / sampler) over the tokens that leave the trust region."""
    normalization: Normalization = "token_mean"


class ClipCovConfig(ClipConfig):
    """Options of Clip-Cov."""

    refuses: ClassVar[tuple[str, ...]] = (*ClipConfig.refuses, "cov_min above cov_max: no token would lie between them")
    name: Literal["clip_cov"] = "clip_cov"
    share: Share = 2e-4
    """Share of the step's tokens whose gradient is taken away."""
    cov_min: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """They are drawn from the tokens whose covariance lies between this ..."""
    cov_max: Annotated[float, Field(allow_inf_nan=False)] = 5.0
    """... and this."""
    normalization: Normalization = "token_mean"

    @model_validator(mode="after")
    def _in_order(self) -> ClipCovConfig:
        if self.cov_min > self.cov_max:
            raise ValueError(f"cov_min={self.cov_min} must not exceed cov_max={self.cov_max}")
        return self


class KLCovConfig(PolicyConfig):
    """Options of KL-Cov."""

    name: Literal["kl_cov"] = "kl_cov"
    share: Share = 2e-3
    """Share of the step's tokens, those of the highest covariance, that are held to where they were."""
    coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of |log(policy / anchor)| on them."""
    normalization: Normalization = "token_mean"


def within_second_moment(columns: StepColumns, config: M2POConfig) -> dict[str, np.ndarray]:
    """The tokens that stay: of those that A has pushed out of the trust region's centre, the largest go until the rest is within bounds.

    Candidates have A > 0 and a ratio above 1, or A < 0 and a ratio below 1; while the mean of log(policy / sampler)^2 over them exceeds the
    threshold, the largest is masked. All other tokens stay.

    Source: arXiv:2510.01161, algorithm 1. Its closed form: sorted, the longest tail whose mean is within the threshold.
    """
    log = columns.start_logprobs - columns.sampler_logprobs
    candidates = np.flatnonzero(((columns.advantages > 0) & (log > 0)) | ((columns.advantages < 0) & (log < 0)))
    keep = np.ones(len(log))
    if len(candidates):
        squares = log[candidates] ** 2
        ascending = np.argsort(squares, kind="stable")
        means = np.cumsum(squares[ascending]) / np.arange(1, len(ascending) + 1)
        kept = int(np.searchsorted(means, config.threshold, side="right"))  # running means of ascending squares rise
        keep[candidates[ascending[kept:]]] = 0.0
    return policy_select(columns, config) | {"within": keep}


def masked_surrogate(batch: TokenBatch, config: M2POConfig) -> Losses:
    """-M r A, r = policy / sampler of each token, without a clip. Metrics [tokens]: `correction/masked`.

    Source: arXiv:2510.01161, eq. 5; the mean is over all tokens, masked ones included.
    """
    keep = batch.columns["within"]
    loss = -keep * ratio_to_anchor(batch, config) * batch.advantages
    return Losses(per="token", loss=loss, metrics={"correction/masked": 1 - keep})


def covariances(columns: StepColumns) -> np.ndarray:
    """[tokens] (log-prob - mean log-prob)(A - mean A), whose mean is the covariance that entropy falls by.

    Source: Cui et al. 2025, arXiv:2505.22617, eq. 10.
    """
    return np.asarray((columns.start_logprobs - columns.start_logprobs.mean()) * (columns.advantages - columns.advantages.mean()))


def drawn_by_covariance(columns: StepColumns, config: ClipCovConfig) -> dict[str, np.ndarray]:
    """Some tokens of high covariance, drawn at random with the step's own seed: equal on every rank. Source: eq. 11 and 12."""
    chosen = np.zeros(len(columns.advantages))
    if len(chosen):
        cov = covariances(columns)
        eligible = np.flatnonzero((cov >= config.cov_min) & (cov <= config.cov_max))
        count = min(len(eligible), math.floor(config.share * len(cov)))
        chosen[np.random.default_rng(columns.seed).choice(eligible, size=count, replace=False)] = 1.0
    return policy_select(columns, config) | {"detached": chosen}


def highest_covariance(columns: StepColumns, config: KLCovConfig) -> dict[str, np.ndarray]:
    """The tokens of the highest covariance. Source: eq. 13."""
    chosen = np.zeros(len(columns.advantages))
    count = math.floor(config.share * len(chosen))
    if count:
        chosen[np.argsort(-covariances(columns), kind="stable")[:count]] = 1.0
    return policy_select(columns, config) | {"held": chosen}


def clip_by_covariance(batch: TokenBatch, config: ClipCovConfig) -> Losses:
    """The clipped surrogate, without the gradient of the drawn tokens. Metrics [tokens]: `clip_ratio/*`, `clip_cov/detached`.

    Source: Cui et al. 2025, arXiv:2505.22617, eq. 12.
    """
    found = clipped_tokens(batch, config)
    detached = batch.columns["detached"]
    loss = found.loss.detach().where(detached > 0, found.loss)
    return replace(found, loss=loss, token_metrics={"clip_cov/detached": detached})


def hold_by_covariance(batch: TokenBatch, config: KLCovConfig) -> Losses:
    """-r A, with coefficient |log r| added on the chosen tokens. Metrics [tokens]: `kl_cov/held`.

    Source: Cui et al. 2025, arXiv:2505.22617, eq. 14; |log r| stands for the KL as in the authors' own experiments.
    """
    log = log_ratio_to_anchor(batch, config)
    held = batch.columns["held"]
    loss = -importance_ratio(log) * batch.advantages + held * config.coefficient * log.abs()
    return Losses(per="token", loss=loss, token_metrics={"kl_cov/held": held})


def _needs(config: Any) -> Needs:
    return replace(policy_needs(config), start=True)


M2PO = policy_objective(
    "m2po",
    M2POConfig,
    masked_surrogate,
    needs=_needs,
    select=within_second_moment,
    formula=(
        "-M r A, r = policy / sampler of each token\nM = 0 for the tokens of the largest log(r)^2 among those that A has pushed outwards, "
        "until the mean of the others' is within the threshold; mean over all tokens"
    ),
    source="arXiv:2510.01161, algorithm 1 and eq. 5",
    summary="Bounds the second moment of the log-ratio instead of each ratio: stays useful on very stale data.",
    paper={"threshold": "0.04"},
)
CLIP_COV = policy_objective(
    "clip_cov",
    ClipCovConfig,
    clip_by_covariance,
    needs=_needs,
    select=drawn_by_covariance,
    formula=(
        "-min(r A, clip(r) A), without gradient for a random share of the tokens whose\n"
        "(log p - mean log p)(A - mean A) lies between cov_min and cov_max; mean over all tokens"
    ),
    source="Cui et al. 2025, arXiv:2505.22617, eq. 10 to 12",
    summary="Keeps entropy up: takes the gradient from a few of the tokens that would lower it most.",
    paper={"share": "2e-4", "cov_min": "1", "cov_max": "5"},
)
KL_COV = policy_objective(
    "kl_cov",
    KLCovConfig,
    hold_by_covariance,
    needs=_needs,
    select=highest_covariance,
    # A token that is held has a gradient without an advantage.
    zero_advantage_is_zero_loss=lambda config: False,
    formula="-r A + coefficient |log r| on the tokens of the highest (log p - mean log p)(A - mean A); mean over all tokens",
    source="Cui et al. 2025, arXiv:2505.22617, eq. 13 and 14",
    summary="Keeps entropy up: holds the tokens that would lower it most to where they were.",
    paper={"share": "2e-3 (7B), 2e-4 (32B)", "coefficient": "1"},
)
