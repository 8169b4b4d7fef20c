"""PPO with a critic, and decoupled PPO, whose trust region lies around the learner and not around a stale sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from agentrl.objectives.gae import critic_advantages
from agentrl.objectives.grpo import CLIPPED, ClipConfig, clipped_tokens
from agentrl.objectives.kl import KLEstimator
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.needs import Critic, Needs
from agentrl.objectives.policy import policy_needs, policy_objective
from agentrl.objectives.surrogate import clip_metrics, clipped_surrogate, importance_ratio

if TYPE_CHECKING:
    import torch

    from agentrl.objectives.losses import TokenBatch


class PPOConfig(ClipConfig):
    """Options of PPO."""

    name: Literal["ppo"] = "ppo"
    baseline: Literal["none"] = "none"
    """The critic's values are the baseline."""
    scale_rewards: Literal["none"] = "none"
    reward_aggregation: Literal["sum_then_normalize"] = "sum_then_normalize"
    turn_discount: None = None
    """Turns are credited by the critic; see `discount`."""
    normalization: Normalization = "token_mean"
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: KLEstimator = "k1"
    discount: Annotated[float, Field(ge=0, le=1)] = 1.0
    """gamma, a token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How far rewards are credited back past the critic's values: 0 trusts the next value, 1 only what was given."""
    whiten: bool = True
    """Shift and scale the advantages of the step to mean 0 and variance 1."""
    critic: Literal["head", "model"] = "model"
    """A value head on the policy's hidden states, or a value model of its own that starts from the policy's weights."""
    critic_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Learning rate of a value model of its own; null takes ten times learner.lr."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which only the critic is trained."""
    value_coef: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Weight of the value loss."""
    clip_value: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 0.2
    """How far a value may move from where the step found it before its gradient ends; null has no clip."""
    epochs: Annotated[int, Field(ge=1)] = 4


class DecoupledPPOConfig(ClipConfig):
    """Options of decoupled PPO."""

    anchored_at_start: ClassVar[bool] = True
    reanchors: ClassVar[bool] = False
    name: Literal["decoupled_ppo"] = "decoupled_ppo"
    proximal: Literal["recomputed", "loglinear"] = "recomputed"
    """The proximal policy: the learner as it begins the step, or an interpolation between it and the sampler by their versions."""
    weight_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Tokens whose proximal / sampler exceeds this are left out; null leaves out none (AReaL's own runs: 5)."""
    normalization: Normalization = "token_mean"
    minibatches: Annotated[int, Field(ge=1)] = 4


def value_losses(batch: TokenBatch, config: PPOConfig) -> torch.Tensor:
    """[tokens] half the squared error of the critic, or the larger one of it and its clipped twin.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9; the clip: Huang et al. 2022, "The 37 implementation details of PPO", 9.
    """
    assert batch.values is not None, "PPO asks for a critic"
    assert batch.returns is not None, "PPO asks for returns"
    error = (batch.values - batch.returns).square()
    if config.clip_value is not None:
        assert batch.start_values is not None, "clip_value asks for the values at the start"
        near = batch.start_values + (batch.values - batch.start_values).clamp(-config.clip_value, config.clip_value)
        error = error.maximum((near - batch.returns).square())
    return 0.5 * error


def policy_and_value(batch: TokenBatch, config: PPOConfig) -> Losses:
    """The clipped surrogate of each token, with `value_coef` times the critic's loss beside it.

    Metrics [tokens]: `clip_ratio/*`, and under TRL's names `val/clipfrac_avg`, `loss/value_avg`, `policy/approxkl_avg`.
    """
    found = clipped_tokens(batch, config)
    value = value_losses(batch, config)
    assert batch.values is not None
    extra = {"loss/value_avg": value.detach(), "policy/approxkl_avg": 0.5 * (batch.logprobs.detach() - batch.sampler_logprobs).square()}
    if config.clip_value is not None:
        assert batch.start_values is not None
        extra["val/clipfrac_avg"] = ((batch.values - batch.start_values).abs() > config.clip_value).to(value.dtype).detach()
    return replace(found, terms={"value": config.value_coef * value}, token_metrics=extra)


def decoupled_tokens(batch: TokenBatch, config: DecoupledPPOConfig) -> Losses:
    """-sg(proximal / sampler) min(u A, clip(u) A), u = policy / proximal.

    Args:
        batch: logprobs, start and sampler log-probs, advantages [tokens]; staleness [tokens] for `loglinear`.
        config: clips, weight_max, proximal.

    Returns: loss [tokens]. Metrics [tokens]: `clip_ratio/*`, `correction/masked` where `weight_max` left a token out.

    Sources: Hilton et al. 2021, arXiv:2110.00641, eq. 3; Fu et al. 2025 (AReaL), arXiv:2505.24298, eq. 5.
    """
    proximal = _loglinear(batch) if config.proximal == "loglinear" else batch.start
    weight = importance_ratio(proximal - batch.sampler_logprobs)
    struck = {}
    if config.weight_max is not None:
        over = (weight > config.weight_max).to(weight.dtype)
        weight, struck = weight * (1 - over), {"correction/masked": over}
    ratio = importance_ratio(batch.logprobs - proximal)
    loss = weight * clipped_surrogate(ratio, batch.advantages, config.clip)
    return Losses(per="token", loss=loss, metrics=clip_metrics(ratio, batch.advantages, config.clip) | struck, weights=weight)


def _loglinear(batch: TokenBatch) -> torch.Tensor:
    """[tokens] log-probs of a policy one step behind the learner's, between sampler and learner in proportion to their versions.

    log proximal = log sampler + (d - 1) / d (log policy - log sampler), d = steps between sampler and policy now, at least 1.
    """
    assert batch.staleness is not None
    steps = batch.staleness + 1  # of the policy that this step makes
    share = (steps - 1) / steps
    return batch.sampler_logprobs + share * (batch.logprobs.detach() - batch.sampler_logprobs)


def _ppo_needs(config: Any) -> Needs:
    critic = Critic(kind=config.critic, lr=config.critic_lr or 0.0, warmup_steps=config.critic_warmup_steps)
    return replace(policy_needs(config), critic=critic)


def _decoupled_needs(config: Any) -> Needs:
    """With the interpolated proximal policy nothing of the loss itself asks for the start."""
    return replace(policy_needs(config), reads_start=config.proximal == "recomputed" or bool(config.corrections))


PPO = policy_objective(
    "ppo",
    PPOConfig,
    policy_and_value,
    advantages=critic_advantages,
    needs=_ppo_needs,
    zero_advantage_is_zero_loss=lambda config: False,
    formula=(
        f"{CLIPPED}\n+ value_coef / 2 max((V - R)^2, (clip(V, V_start +- clip_value) - R)^2)\n"
        "A = GAE(discount, gae_lambda) of the critic's values, whitened; R = A + V_start; mean over all tokens"
    ),
    source="Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; GAE: arXiv:1506.02438, eq. 16",
    summary="A critic's values as the baseline of each token, several passes over the data.",
    paper={"clip_low": "0.2", "gae_lambda": "0.95", "discount": "0.99", "epochs": "3 to 15", "value_coef": "1 (Atari)"},
)
DECOUPLED_PPO = policy_objective(
    "decoupled_ppo",
    DecoupledPPOConfig,
    decoupled_tokens,
    needs=_decoupled_needs,
    formula=(
        "-sg(proximal / sampler) min(u A, clip(u, 1 - clip_low, 1 + clip_high) A), u = policy / proximal\n"
        "proximal = the learner as it begins the step; mean over all tokens of the minibatch"
    ),
    source="Hilton et al. 2021, arXiv:2110.00641, eq. 3; Fu et al. 2025 (AReaL), arXiv:2505.24298, eq. 5",
    summary="The clip holds the policy near the learner's own start of the step; a weight corrects for the stale sampler.",
    paper={"minibatches": "4", "clip_low": "0.2", "weight_max": "none in the paper"},
)
