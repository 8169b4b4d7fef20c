"""What all policy-gradient objectives share: their options, and the loss around each one's own surrogate.

An objective is a surrogate, a short pure function of a micro-batch that returns one loss a token (or a rollout). `policy_losses` puts
around it, in this order: the corrections' factors, tokens that were left out over the whole step, the KL to the reference, the entropy
bonus. `policy_objective` makes a row of the registry of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.corrections import Correction, correct, refusals
from agentrl.objectives.credit import Baseline, compared_rewards, contradictions, shaped_rewards
from agentrl.objectives.entropy import adapted_entropy_coefficient, highest, needed
from agentrl.objectives.kl import KLEstimator, adapted_coefficient, reference_kl
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.needs import Needs
from agentrl.objectives.surrogate import importance_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import torch

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import StepColumns

MASKED = "correction/masked"
"""1 where a token was left out, by whatever."""

DEPENDENT = {
    "overlong_cache": "overlong_length",
    "kl_horizon": "kl_target",
    "entropy_delta": "entropy_target",
    "entropy_coef_min": "entropy_target",
    "entropy_coef_max": "entropy_target",
}
"""Options without effect where another one is null."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class PolicyConfig(ObjectiveConfig):
    """Options of every policy-gradient objective."""

    reanchors: ClassVar[bool] = True
    """Whether the ratio's denominator may be the learner at the start of the step, where a correction weighs by start / sampler."""
    anchored_at_start: ClassVar[bool] = False
    """Whether it always is."""
    per_rollout: ClassVar[bool] = False
    """Whether the surrogate gives one loss a rollout."""
    refuses: ClassVar[tuple[str, ...]] = ()
    """Combinations of its own options that it refuses, and why, a sentence each."""

    baseline: Baseline = "group"
    """What a reward is compared with: the mean of its group (`group`), of its siblings (`leave_one_out`), of the step (`batch`), a running
    mean over earlier steps (`running`), or nothing (`none`)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What the centred rewards are divided by: the standard deviation of their group, that of the whole step, or nothing (Dr.GRPO)."""
    reward_weights: Annotated[dict[str, Finite], Field(min_length=1)] | None = None
    """Weights of the named parts of the scores; a part that a rollout lacks counts as 0. Null takes the scores as they are given."""
    reward_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """`normalize_then_sum`: each part is compared within its group before they are added up (GDPO)."""
    turn_discount: Annotated[float, Field(ge=0, le=1)] | None = None
    """Credit each turn with the rewards from it on, discounted by this a turn; null credits every token with the whole score."""
    overlong_length: Count | None = None
    """Soft overlong punishment: -1 for rollouts of this many sampled tokens or more (DAPO); null has none."""
    overlong_cache: Count = 64
    """Tokens before `overlong_length` over which the punishment grows from 0 to -1."""
    running_baseline: Finite = 0.0
    """The running baseline before the first step."""
    running_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the running baseline that stays at each step; null takes the mean over all earlier steps."""
    normalization: Normalization = "sequence_mean"
    """How token losses become one number: `sequence_mean` (GRPO), `token_mean` (DAPO), `sequence_sum` (LUSPO) or `constant` (Dr.GRPO)."""
    beta: NonNegative = 0.0
    """Weight of the KL to the reference; above 0 the run holds a reference model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL goes: a term of the loss, or taken off the reward. See `agentrl objectives show kl` for which gradient each gives."""
    kl_estimator: KLEstimator = "k3"
    """k1 = log(policy / reference), k2 = k1^2 / 2, k3 = exp(-k1) - 1 + k1."""
    kl_correction: bool = True
    """In the loss: weigh the estimate by the token's ratio, which makes its expected gradient that of the KL; false is the plain one."""
    kl_target: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Adapt `beta` so that the KL stays near this, in nats a rollout; null keeps `beta`."""
    kl_horizon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10_000.0
    """Rollouts in which `beta` changes by at most 20%."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus, per nat; with `entropy_target` the weight that it starts from."""
    entropy_target: NonNegative | None = None
    """Adapt `entropy_coef` so that the entropy does not fall below this, in nats a token; above it there is no bonus."""
    entropy_delta: NonNegative = 0.005
    """Change of an adaptive `entropy_coef` a step."""
    entropy_coef_min: NonNegative = 0.0
    """Lower bound of an adaptive `entropy_coef`."""
    entropy_coef_max: NonNegative = 1.0
    """Upper bound of an adaptive `entropy_coef`."""
    top_entropy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the step's tokens, those of the highest entropy, that the policy term trains, as if there were no others (0.2 in
    arXiv:2506.01939)."""
    corrections: list[Correction] = Field(default_factory=list)
    """Corrections for stale or mismatched samplers, such as `[{name: tis, max: 2}, {name: veto}]`; see `agentrl objectives show
    corrections`."""
    dynamic_sampling: bool = False
    """Play other groups in the place of those whose rewards are all equal (DAPO)."""
    epochs: Count = 1
    """How often a step's data is gone over."""
    minibatches: Count = 1
    """Optimizer steps of each of these passes."""

    @property
    def reweighted(self) -> bool:
        """Whether a correction carries start / sampler, so that the loss's own ratio is policy / start."""
        return self.anchored_at_start or any(one.weighs for one in self.corrections)

    @property
    def adapts_entropy(self) -> bool:
        """Whether the entropy's coefficient changes."""
        return self.entropy_target is not None

    @model_validator(mode="after")
    def _consistent(self) -> PolicyConfig:
        found = refusals(self.corrections, reanchors=self.reanchors, per_rollout=self.per_rollout, objective=self.name)
        if self.beta > 0 and self.kl_in == "loss" and self.kl_estimator == "k1" and not self.kl_correction:
            found.append("kl_estimator k1 in the loss without kl_correction has an expected gradient of 0: set kl_correction, or take k2")
        if self.kl_target is not None and self.beta == 0:
            found.append("kl_target adapts beta, and beta is 0: set the coefficient that it starts from")
        if self.adapts_entropy and self.entropy_coef_min > self.entropy_coef_max:
            found.append(f"entropy_coef_min={self.entropy_coef_min} must not exceed entropy_coef_max={self.entropy_coef_max}")
        if self.overlong_length is not None and self.overlong_cache > self.overlong_length:
            found.append(f"overlong_cache={self.overlong_cache} must not exceed overlong_length={self.overlong_length}")
        found += contradictions(self)
        for name, master in DEPENDENT.items():
            if getattr(self, master) is None and getattr(self, name) != type(self).model_fields[name].default:
                found.append(f"{name} has no effect without {master}: set {master}, or remove it")
        if self.top_entropy < 1 and self.per_rollout:
            found.append(f"top_entropy chooses tokens, and {self.name} has one loss a rollout")
        if self.turn_discount is not None and self.per_rollout:
            found.append(f"turn_discount credits turns, and {self.name} has one loss a rollout")
        if found:
            raise ValueError("; ".join(found))
        return self


def ratio_to_anchor(batch: TokenBatch, config: PolicyConfig) -> torch.Tensor:
    """[tokens] policy now / what the samples are measured against, differentiable and finite.

    That is the sampler, or the learner at the start of the step where a weight carries the rest.
    """
    return importance_ratio(log_ratio_to_anchor(batch, config))


def log_ratio_to_anchor(batch: TokenBatch, config: PolicyConfig) -> torch.Tensor:
    """The same in nats."""
    return batch.logprobs - (batch.start if config.reweighted else batch.sampler_logprobs)


def policy_losses(batch: TokenBatch, config: Any, *, surrogate: Callable[[TokenBatch, Any], Losses]) -> Losses:
    """A surrogate with its corrections, and the terms beside it.

    Returns: the surrogate's loss times all factors; terms [tokens] `kl` and `entropy`, coefficients included. Metrics: the surrogate's,
    the corrections', `kl` (nats a token).
    """
    found = surrogate(batch, config)
    loss, weights = found.loss, found.weights
    metrics, token_metrics = dict(found.metrics), dict(found.token_metrics)
    if config.corrections:
        factors, struck = correct(batch, config.corrections)
        if MASKED in metrics:  # the surrogate leaves tokens out too
            struck[MASKED] = struck[MASKED].maximum(metrics.pop(MASKED))
        token_metrics |= struck
        loss = loss * (batch.mean_by_rollout(factors) if found.per == "rollout" else factors)
        weights = factors if weights is None else weights * factors
    if "keep" in batch.columns:
        loss = loss * batch.columns["keep"]
        token_metrics["selected"] = (batch.columns["keep"] > 0).to(loss.dtype)
    terms = dict(found.terms)
    if config.beta > 0 and config.kl_in == "loss":
        assert batch.reference_logprobs is not None, "beta > 0 asks for a reference"
        ratio = importance_ratio(batch.logprobs - batch.sampler_logprobs) if config.kl_correction else None
        kl = reference_kl(batch.logprobs, batch.reference_logprobs, ratio, config.kl_estimator)
        terms["kl"] = config.beta * kl
        token_metrics["kl"] = kl.detach()
    if config.entropy_coef > 0:
        assert batch.entropy is not None, "entropy_coef > 0 asks for entropies"
        terms["entropy"] = -config.entropy_coef * batch.entropy * batch.columns.get("bonus", 1.0)
    more = {"some_metrics": found.some_metrics, "lowest": found.lowest, "highest": found.highest}
    return Losses(per=found.per, loss=loss, terms=terms, metrics=metrics, token_metrics=token_metrics, weights=weights, **more)


def policy_needs(config: Any) -> Needs:
    """What the shared options ask for."""
    compares = config.baseline in ("group", "leave_one_out")
    return Needs(
        reference=config.beta > 0,
        start=config.top_entropy < 1 or config.adapts_entropy,
        entropy=config.entropy_coef > 0 or config.adapts_entropy,
        group_size=2 if compares else 1,
        passes=config.epochs,
        minibatches=config.minibatches,
        signal=config.dynamic_sampling,
        by_part=config.reward_weights is not None or config.reward_aggregation == "normalize_then_sum",
        by_turn=config.turn_discount is not None,
    )


def policy_select(columns: StepColumns, config: Any) -> dict[str, np.ndarray]:
    """The tokens that the policy term trains, where that is fewer than all; whether an adaptive entropy bonus counts in this step."""
    chosen = {"keep": highest(columns.start_entropy, config.top_entropy)} if config.top_entropy < 1 else {}
    return chosen | ({"bonus": needed(columns.start_entropy, config.entropy_target)} if config.adapts_entropy else {})


def zero_at_zero_advantage(config: Any) -> bool:
    """Whether nothing beside the surrogate has a gradient."""
    return bool((config.beta == 0 or config.kl_in == "reward") and config.entropy_coef == 0 and not config.adapts_entropy)


def policy_state(config: Any) -> dict[str, float]:
    """What adapts, at the start of a run."""
    state: dict[str, float] = {}
    if config.baseline == "running":
        state |= {"running_baseline": config.running_baseline, "running_steps": 0.0}
    if config.kl_target is not None:
        state["beta"] = config.beta
    if config.adapts_entropy:
        state["entropy_coef"] = config.entropy_coef
    return state


def policy_in_force(config: Any, state: Mapping[str, float]) -> Any:
    """The config with what has adapted."""
    values: dict[str, float] = {name: state[name] for name in ("running_baseline", "beta", "entropy_coef") if name in state}
    return config.model_copy(update=values) if values else config


def policy_next_state(config: Any, state: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """What has adapted after a step; a step that trained nothing changes nothing of it."""
    new = dict(state)
    if "running_baseline" in state and "learner/reward_mean" in metrics:
        steps = state["running_steps"]
        stays = config.running_decay if config.running_decay is not None else steps / (steps + 1)
        mean = stays * state["running_baseline"] + (1 - stays) * metrics["learner/reward_mean"]
        new |= {"running_baseline": mean, "running_steps": steps + 1}
    if "beta" in state and "kl" in metrics:
        rollouts = metrics["learner/rollouts"]
        per_rollout = metrics["kl"] * metrics["learner/counted_tokens"] / rollouts
        new["beta"] = adapted_coefficient(state["beta"], per_rollout, config.kl_target, rollouts, config.kl_horizon)
    if "entropy_coef" in state and "entropy" in metrics:
        new["entropy_coef"] = adapted_entropy_coefficient(
            state["entropy_coef"],
            metrics["entropy"],
            config.entropy_target,
            config.entropy_delta,
            config.entropy_coef_min,
            config.entropy_coef_max,
        )
    return new


def policy_objective(name: str, config: type[PolicyConfig], surrogate: Callable[[TokenBatch, Any], Losses], **options: Any) -> Objective:
    """A row of the registry around a surrogate; `options` replace any field of `Objective`."""
    fields: dict[str, Any] = {
        "advantages": compared_rewards,
        "rewards": shaped_rewards,
        "needs": policy_needs,
        "normalization": lambda one: one.normalization,
        "select": policy_select,
        "zero_advantage_is_zero_loss": zero_at_zero_advantage,
        "state": policy_state,
        "in_force": policy_in_force,
        "next_state": policy_next_state,
        "refused": (*REFUSED, *config.refuses),
    }
    return Objective(name=name, config=config, loss=partial(policy_losses, surrogate=surrogate), **(fields | options))


REFUSED: Sequence[str] = (
    "two corrections that weigh by start / sampler, or one on a loss whose ratio is policy / sampler already: it would count twice",
    "a correction of tokens, top_entropy or turn_discount where the objective has one loss a rollout",
    "kl_estimator k1 in the loss without kl_correction: its expected gradient is 0",
    "kl_target without beta: there is no coefficient to adapt",
    "normalize_then_sum with another baseline or scale than the group's, or with turn_discount: each says how rewards are compared",
    "scale_rewards with a baseline that is no mean of the same rewards: the spread can be 0 where what it divides is not",
    "options that others leave without effect: overlong_cache without overlong_length, running_decay without baseline running, ...",
    "entropy_coef_min above entropy_coef_max, overlong_cache above overlong_length: the range would be empty",
)
