"""Corrections for samplers that are stale or compute otherwise: named, composable weights and masks on the tokens of a policy loss.

All of them read rho = exp(start - sampler): the learner's probability of a token as it begins the step, over that of the policy that
drew it. A *weight* takes the place of the sampler in the ratio's denominator: the ratio of the loss is then policy now / learner at the
start of the step, and the weight carries the rest, so that each mismatch is counted once. A *mask* only leaves tokens out. Denominators
stay those of all tokens: what is masked counts as 0, as in TRL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentrl.objectives.surrogate import MAX_LOG_RATIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agentrl.objectives.losses import TokenBatch

Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CorrectionConfig(BaseModel):
    """Base of all corrections; `name` says which."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weighs: ClassVar[bool]
    """Whether it multiplies by rho; at most one of a list does."""
    by_sequence: ClassVar[bool] = False
    """Whether all tokens of a rollout get one factor."""
    formula: ClassVar[str]
    """The factor of a token, in one line of plain text."""

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """[tokens] factors, without gradient, and [tokens] of 0 and 1 under `masked` or `clipped`."""
        raise NotImplementedError


class _Band(CorrectionConfig):
    min: Ratio = 0.0
    """Lower bound of the ratio."""
    max: Ratio = 2.0
    """Upper bound of the ratio."""

    @model_validator(mode="after")
    def _in_order(self) -> _Band:
        if self.min >= self.max:
            raise ValueError(f"min={self.min} must be below max={self.max}")
        return self


class TIS(_Band):
    """Truncated importance sampling: rho, clamped (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL")."""

    weighs: ClassVar[bool] = True
    formula: ClassVar[str] = "clamp(rho, min, max)"
    name: Literal["tis"] = "tis"

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """clamp(rho, min, max) of each token."""
        return rho.token.clamp(self.min, self.max), {"clipped": _outside(rho.token, self)}


class SequenceTIS(_Band):
    """Truncated importance sampling of whole rollouts: the product of rho, clamped; one weight a rollout."""

    weighs: ClassVar[bool] = True
    by_sequence: ClassVar[bool] = True
    formula: ClassVar[str] = "clamp(product of rho over the rollout, min, max)"
    name: Literal["sequence_tis"] = "sequence_tis"

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """clamp(product of rho, min, max) of each token's rollout."""
        return rho.product.clamp(self.min, self.max), {"clipped": _outside(rho.product, self)}


class IcePop(_Band):
    """rho where it lies in the band, and 0 elsewhere (Ling team 2025, arXiv:2510.18855)."""

    weighs: ClassVar[bool] = True
    formula: ClassVar[str] = "rho where min <= rho <= max, else 0"
    name: Literal["icepop"] = "icepop"
    min: Ratio = 0.5
    max: Ratio = 5.0

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Rho of each token, or 0."""
        outside = _outside(rho.token, self)
        return rho.token * (1 - outside), {"masked": outside}


class SequenceMask(_Band):
    """Leave out rollouts whose ratio as a whole lies outside a band; the kept ones are not weighted."""

    weighs: ClassVar[bool] = False
    by_sequence: ClassVar[bool] = True
    formula: ClassVar[str] = "1 where min <= (product, or geometric mean, of rho over the rollout) <= max, else 0"
    name: Literal["sequence_mask"] = "sequence_mask"
    measure: Literal["product", "geometric"] = "product"
    """`product` of the rollout's rho, or its `geometric` mean, which does not grow with the length."""
    min: Ratio = 0.0
    max: Ratio = 3.0

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """1 for each token of a kept rollout, else 0."""
        outside = _outside(rho.product if self.measure == "product" else rho.geometric, self)
        return 1 - outside, {"masked": outside}


class OffPolicyMask(CorrectionConfig):
    """Leave out rollouts with a negative advantage that the learner has moved away from (DeepSeek-V3.2, arXiv:2512.02556, eq. 9)."""

    weighs: ClassVar[bool] = False
    by_sequence: ClassVar[bool] = True
    formula: ClassVar[str] = "0 where A < 0 and mean over the rollout of log(sampler / start) > threshold, else 1"
    name: Literal["off_policy_mask"] = "off_policy_mask"
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Nats a token: the mean of sampler - start over the rollout above which it is left out."""

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """1 for each token of a kept rollout, else 0."""
        dropped = ((rho.advantages < 0) & (-rho.mean_log > self.threshold)).to(rho.token.dtype)
        return 1 - dropped, {"masked": dropped}


class Veto(CorrectionConfig):
    """Reject rollouts with a token that the learner finds far less likely than the sampler did: no weight can mend those."""

    weighs: ClassVar[bool] = False
    by_sequence: ClassVar[bool] = True
    formula: ClassVar[str] = "0 where any rho of the rollout < below, else 1"
    name: Literal["veto"] = "veto"
    below: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """A rollout with any rho below this is left out."""

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """1 for each token of a kept rollout, else 0."""
        hits = rho.any_in_rollout(rho.token < self.below)
        return 1 - hits, {"masked": hits}


class RatioCap(CorrectionConfig):
    """Leave out tokens that the learner finds far likelier than the sampler did, whatever their advantage."""

    weighs: ClassVar[bool] = False
    formula: ClassVar[str] = "0 where rho > max, else 1"
    name: Literal["ratio_cap"] = "ratio_cap"
    max: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 10.0
    """Tokens with rho above this are left out."""

    def factor(self, rho: Rho) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """1 for each kept token, else 0."""
        outside = (rho.token > self.max).to(rho.token.dtype)
        return 1 - outside, {"masked": outside}


Correction = Annotated[TIS | SequenceTIS | IcePop | SequenceMask | OffPolicyMask | Veto | RatioCap, Field(discriminator="name")]

CORRECTIONS: dict[str, type[CorrectionConfig]] = {
    "tis": TIS,
    "sequence_tis": SequenceTIS,
    "icepop": IcePop,
    "sequence_mask": SequenceMask,
    "off_policy_mask": OffPolicyMask,
    "veto": Veto,
    "ratio_cap": RatioCap,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rho:
    """start / sampler of a micro-batch, in the forms that corrections read. [tokens] each, no gradient."""

    token: torch.Tensor
    """exp(start - sampler), finite."""
    product: torch.Tensor
    """Of each token's rollout."""
    geometric: torch.Tensor
    """Geometric mean over each token's rollout."""
    mean_log: torch.Tensor
    """Mean of start - sampler over each token's rollout, in nats."""
    advantages: torch.Tensor
    rollout: torch.Tensor

    @staticmethod
    def of(batch: TokenBatch) -> Rho:
        """All forms for a micro-batch."""
        log = batch.start - batch.sampler_logprobs
        sums, lengths = batch.sum_by_rollout(log), batch.lengths
        means = sums / lengths.clamp(min=1)
        return Rho(
            token=_exp(log),
            product=_exp(sums)[batch.rollout],
            geometric=_exp(means)[batch.rollout],
            mean_log=means[batch.rollout],
            advantages=batch.advantages,
            rollout=batch.rollout,
        )

    def any_in_rollout(self, hits: torch.Tensor) -> torch.Tensor:
        """[tokens] 1 where any token of the same rollout is hit, else 0."""
        count = int(self.rollout.max()) + 1 if len(self.rollout) else 0
        total = self.token.new_zeros(count).index_add(0, self.rollout, hits.to(self.token.dtype))
        return (total > 0).to(self.token.dtype)[self.rollout]


def correct(batch: TokenBatch, corrections: Sequence[CorrectionConfig]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The product of all corrections' factors.

    Args:
        batch: start and sampler log-probs, advantages.
        corrections: in any order; the product does not depend on it.

    Returns: [tokens] factors, at least 0 and without gradient; metrics [tokens] `correction/<name>_{masked,clipped}`, 1 where a
    correction struck, and `correction/masked`, where any left the token out.
    """
    rho = Rho.of(batch)
    weights = rho.token.new_ones(len(rho.token))
    metrics: dict[str, torch.Tensor] = {}
    for one in corrections:
        factor, struck = one.factor(rho)
        weights = weights * factor
        metrics |= {f"correction/{one.name}_{what}": hits.to(weights.dtype) for what, hits in struck.items()}  # type: ignore[attr-defined]
    metrics["correction/masked"] = (weights == 0).to(weights.dtype)
    return weights, metrics


def refusals(corrections: Sequence[CorrectionConfig], *, reanchors: bool, per_rollout: bool, objective: str) -> list[str]:
    """What is wrong with a list of corrections: double correction above all. Empty where nothing is."""
    names = [one.name for one in corrections]  # type: ignore[attr-defined]
    found = [f"corrections: {name!r} is named twice" for name in sorted({name for name in names if names.count(name) > 1})]
    weights = [one.name for one in corrections if one.weighs]  # type: ignore[attr-defined]
    if len(weights) > 1:
        found.append(
            f"corrections: {' and '.join(weights)} weigh tokens by start / sampler each, which would correct one mismatch twice: keep one"
        )
    if weights and not reanchors:
        found.append(
            f"corrections: {weights[0]} weighs tokens by start / sampler, and the ratio of {objective} is policy / sampler already: the "
            "mismatch would be corrected twice. Remove it, or take a mask "
            f"({', '.join(name for name, kind in CORRECTIONS.items() if not kind.weighs)})"
        )
    if per_rollout:
        by_token = [one.name for one in corrections if not one.by_sequence]  # type: ignore[attr-defined]
        if by_token:
            whole = ", ".join(name for name, kind in CORRECTIONS.items() if kind.by_sequence)
            found.append(f"corrections: {by_token[0]} acts on tokens, and {objective} has one loss a rollout: take one of {whole}")
    return found


def _exp(log: torch.Tensor) -> torch.Tensor:
    return log.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _outside(ratio: torch.Tensor, band: _Band) -> torch.Tensor:
    return ((ratio < band.min) | (ratio > band.max)).to(ratio.dtype)
