"""Objectives that weigh log-probs by a function of the ratio instead of clipping a surrogate: CISPO, AIPO, SAPO, VESPO, REINFORCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from agentrl.objectives.credit import Baseline
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.policy import PolicyConfig, log_ratio_to_anchor, policy_objective, ratio_to_anchor
from agentrl.objectives.surrogate import MAX_LOG_RATIO

if TYPE_CHECKING:
    from agentrl.objectives.losses import TokenBatch

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CISPOConfig(PolicyConfig):
    """Options of CISPO."""

    name: Literal["cispo"] = "cispo"
    ratio_min: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Absolute lower bound of the weight; the paper has none."""
    ratio_max: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 5.0
    """Absolute upper bound of the weight, not an epsilon on top of 1."""
    normalization: Normalization = "token_mean"


class AIPOConfig(PolicyConfig):
    """Options of AIPO."""

    reanchors: ClassVar[bool] = False
    name: Literal["aipo"] = "aipo"
    ratio_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """Upper bound of policy / sampler."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    normalization: Normalization = "token_mean"


class SAPOConfig(PolicyConfig):
    """Options of SAPO."""

    name: Literal["sapo"] = "sapo"
    temperature_pos: Positive = 1.0
    """tau where the advantage is positive: larger closes the gate sooner."""
    temperature_neg: Positive = 1.05
    """tau where it is not."""


class VESPOConfig(PolicyConfig):
    """Options of VESPO."""

    reanchors: ClassVar[bool] = False
    name: Literal["vespo"] = "vespo"
    k_pos: Positive = 2.0
    """k where the advantage is 0 or more: how fast the weight rises with a small w."""
    lambda_pos: Positive = 3.0
    """lambda there: how fast it falls with a large w."""
    k_neg: Positive = 3.0
    """k where the advantage is negative."""
    lambda_neg: Positive = 2.0
    """lambda there."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    normalization: Normalization = "token_mean"


class REINFORCEConfig(PolicyConfig):
    """Options of REINFORCE."""

    name: Literal["reinforce"] = "reinforce"
    baseline: Baseline = "running"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    ratio_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 5.0
    """Upper bound of policy / sampler; null has none."""
    normalization: Normalization = "sequence_sum"


def capped_weights(batch: TokenBatch, config: CISPOConfig) -> Losses:
    """-sg(clamp(r, ratio_min, ratio_max)) A logp: a clipped token keeps its gradient, with a bounded weight.

    Args:
        batch: logprobs, the anchor's log-probs and advantages [tokens].
        config: bounds.

    Returns: loss [tokens]. Metrics [tokens]: `cispo_clip_ratio`, 1 where the upper bound held a positive advantage back.

    Source: MiniMax-M1, arXiv:2506.13585, eq. 4 and 5.
    """
    ratio = ratio_to_anchor(batch, config).detach()
    weight = ratio.clamp(config.ratio_min, config.ratio_max)
    hits = (ratio > config.ratio_max) & (batch.advantages > 0)
    return Losses(per="token", loss=-weight * batch.advantages * batch.logprobs, metrics={"cispo_clip_ratio": hits.to(ratio.dtype)})


def one_sided_weights(batch: TokenBatch, config: AIPOConfig) -> Losses:
    """-sg(min(policy / sampler, ratio_max)) A logp. Source: LlamaRL, Wu et al. 2025, arXiv:2505.24034, sec. 6."""
    ratio = ratio_to_anchor(batch, config).detach()
    metrics = {"clip_ratio/high_mean": (ratio > config.ratio_max).to(ratio.dtype)}
    return Losses(per="token", loss=-ratio.clamp(max=config.ratio_max) * batch.advantages * batch.logprobs, metrics=metrics)


def soft_gate(batch: TokenBatch, config: SAPOConfig) -> Losses:
    """-(4 / tau) sigmoid(tau (r - 1)) A: a smooth clip, whose slope at r = 1 is that of the plain surrogate.

    tau is `temperature_pos` where A > 0, else `temperature_neg`. Source: Gao et al. 2025, arXiv:2511.20347, eq. 5 to 7.
    """
    ratio = ratio_to_anchor(batch, config)
    better = (batch.advantages > 0).to(ratio.dtype)
    tau = better * config.temperature_pos + (1 - better) * config.temperature_neg
    return Losses(per="token", loss=-(4 / tau) * (tau * (ratio - 1)).sigmoid() * batch.advantages)


def variational_weights(batch: TokenBatch, config: VESPOConfig) -> Losses:
    """-sg(phi(w)) A logp, w = policy / sampler of the whole rollout, phi(w) = w^k exp(lambda (1 - w)), which is 1 at w = 1.

    k and lambda are those of the advantage's sign. phi is capped as a ratio is, which matters where the two are far apart.

    Metrics [tokens]: `vespo/phi_seq_mean`. Source: arXiv:2602.10693.
    """
    total = batch.sum_by_rollout(log_ratio_to_anchor(batch, config).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    log = total.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)[batch.rollout]
    better = (batch.advantages >= 0).to(log.dtype)
    k = better * config.k_pos + (1 - better) * config.k_neg
    slope = better * config.lambda_pos + (1 - better) * config.lambda_neg
    phi = (slope + k * log - slope * log.exp()).clamp(max=MAX_LOG_RATIO).exp()
    return Losses(per="token", loss=-phi * batch.advantages * batch.logprobs, metrics={"vespo/phi_seq_mean": phi})


def weighted_score(batch: TokenBatch, config: REINFORCEConfig) -> Losses:
    """-sg(min(r, ratio_max)) A logp: the score function estimator, with the token's importance ratio off policy.

    Source: Williams 1992, "Simple statistical gradient-following algorithms", with the running baseline of its sec. 6.
    """
    ratio = ratio_to_anchor(batch, config).detach()
    weight = ratio if config.ratio_max is None else ratio.clamp(max=config.ratio_max)
    hits = (ratio > weight).to(ratio.dtype)
    return Losses(per="token", loss=-weight * batch.advantages * batch.logprobs, metrics={"clip_ratio/high_mean": hits})


CISPO = policy_objective(
    "cispo",
    CISPOConfig,
    capped_weights,
    formula="-sg(clamp(r, ratio_min, ratio_max)) A log policy, r = policy / sampler of each token\nmean over all tokens of the step",
    source="MiniMax-M1, arXiv:2506.13585, eq. 4",
    summary="Clips the weight and not the gradient: every token goes on learning.",
    paper={"ratio_min": "none", "ratio_max": "not given; 5 in ScaleRL, arXiv:2510.13786"},
)
AIPO = policy_objective(
    "aipo",
    AIPOConfig,
    one_sided_weights,
    formula="-sg(min(policy / sampler, ratio_max)) A log policy\nmean over all tokens of the step",
    source="Wu et al. 2025 (LlamaRL), arXiv:2505.24034, sec. 6",
    summary="Importance weights against the sampler, capped on one side, for asynchronous data.",
    paper={"ratio_max": "between 2 and 10"},
)
SAPO = policy_objective(
    "sapo",
    SAPOConfig,
    soft_gate,
    formula="-(4 / tau) sigmoid(tau (r - 1)) A, tau = temperature_pos where A > 0, else temperature_neg\nmean over rollouts of token means",
    source="Gao et al. 2025, arXiv:2511.20347",
    summary="A smooth gate in the place of the clip.",
    paper={"temperature_pos": "1.0", "temperature_neg": "1.05"},
)
VESPO = policy_objective(
    "vespo",
    VESPOConfig,
    variational_weights,
    formula="-sg(phi(w)) A log policy, phi(w) = w^k exp(lambda (1 - w)), w = policy / sampler of the whole rollout\nmean over all tokens",
    source="arXiv:2602.10693, eq. 20",
    summary="Weights whole rollouts by a smooth function that falls on both sides of w = k / lambda.",
    paper={"k_pos": "2", "lambda_pos": "3", "k_neg": "3", "lambda_neg": "2"},
)
REINFORCE = policy_objective(
    "reinforce",
    REINFORCEConfig,
    weighted_score,
    formula="-sg(min(r, ratio_max)) A log policy, A = reward - running mean of earlier steps' rewards\nsum over tokens, mean over rollouts",
    source="Williams 1992; batch baseline: REINFORCE++, Hu 2025, arXiv:2501.03262",
    summary="The plain score function estimator with a running baseline; groups of one are enough.",
)
