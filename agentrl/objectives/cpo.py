"""Pairs without a reference: CPO, SimPO, both together, and AlphaPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.dpo_losses import MAX_EXPONENT
from agentrl.objectives.losses import Losses, Term
from agentrl.objectives.needs import Needs
from agentrl.objectives.paired import NotNegative, Positive, Smoothing, of_pairs, reward_metrics, rows_as_pairs, smoothed, token_metrics

if TYPE_CHECKING:
    import torch

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.tpo import TPOConfig


def check_compared(config: CPOConfig | TPOConfig, *, with_margin: str) -> None:
    """Raise `ValueError` for options that the chosen loss of a difference does not read; `with_margin` is the loss that has a gamma."""
    if config.label_smoothing > 0 and config.loss in ("hinge", "ipo"):
        raise ValueError(f"label_smoothing has no effect on {config.loss}: remove it, or take sigmoid or {with_margin}")
    if config.loss != with_margin and config.gamma != type(config).model_fields["gamma"].default:
        raise ValueError(f"gamma belongs to loss {with_margin}, which is {config.loss}: remove one of the two")


class CPOConfig(ObjectiveConfig):
    """Options of CPO."""

    name: Literal["cpo"] = "cpo"
    beta: Positive = 0.1
    """How much a difference of log-probs counts."""
    loss: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    """`sigmoid`, `hinge`: of the difference of whole log-probs; `ipo`, `simpo`: of mean log-probs a token."""
    cpo_alpha: NotNegative = 1.0
    """Weight of the likelihood of chosen texts."""
    gamma: NotNegative = 0.5
    """Of `simpo`: the margin to reach; the paper's gamma, and beta times its gamma / beta ratio."""
    label_smoothing: Smoothing = 0.0
    """The chance that a pair's label is wrong, for sigmoid and simpo."""

    @model_validator(mode="after")
    def _consistent(self) -> CPOConfig:
        check_compared(self, with_margin="simpo")
        return self


class SimPOConfig(ObjectiveConfig):
    """Options of SimPO."""

    name: Literal["simpo"] = "simpo"
    beta: Positive = 2.0
    """How much a difference of mean log-probs counts; a mean is far smaller than a sum, and beta larger than DPO's."""
    gamma: NotNegative = 1.0
    """The margin to reach; the paper's gamma, and beta times its gamma / beta ratio."""
    label_smoothing: Smoothing = 0.0
    """The chance that a pair's label is wrong."""


class CPOSimPOConfig(SimPOConfig):
    """Options of CPO-SimPO."""

    name: Literal["cpo_simpo"] = "cpo_simpo"  # type: ignore[assignment]
    cpo_alpha: NotNegative = 1.0
    """Weight of the likelihood of chosen texts."""


class AlphaPOConfig(SimPOConfig):
    """Options of AlphaPO."""

    name: Literal["alphapo"] = "alphapo"  # type: ignore[assignment]
    alpha: float = 0.25
    """Shape of the reward (1 - p^-alpha) / alpha, p = exp(mean log-prob): above 0 unlikely texts count more, below 0 less; 0 is SimPO."""


def shaped(means: torch.Tensor, alpha: float) -> torch.Tensor:
    """(1 - p^-alpha) / alpha of p = exp(mean log-prob), and its limit log p for alpha 0 (arXiv:2501.03884, eq. 6)."""
    return means if alpha == 0 else -(-alpha * means).clamp(max=MAX_EXPONENT).expm1() / alpha


def pair_losses(batch: TokenBatch, config: Any) -> Losses:
    """A loss of x = the chosen text's reward - the rejected one's, and beside it cpo_alpha times -log p of each chosen token.

    Rewards are log-probs of whole texts (sigmoid, hinge), or means over their tokens (ipo, simpo and the objectives of that name), which
    AlphaPO shapes. sigmoid: -log sigmoid(beta x), smoothed; simpo: -log sigmoid(beta x - gamma), smoothed; hinge: max(0, 1 - beta x); ipo:
    (x - 1 / (2 beta))^2. The likelihood is a mean over all chosen tokens of the step, as in CPO's code and in TRL; the paper's is one of
    whole texts.

    Args:
        batch: logprobs, correct, mean_logits [tokens]; chosen, rejected [pairs].
        config: of CPO or one of its relatives.

    Returns: loss [pairs], term `nll` of chosen tokens. Metrics: `rewards/*`, `logps/*` as the loss reads them, `logits/*`, `nll_loss`,
    `mean_token_accuracy`.

    Sources: CPO: Xu et al. 2024, arXiv:2401.08417, eq. 3 to 5; SimPO: Meng et al. 2024, arXiv:2405.14734, eq. 6; AlphaPO: Gupta et al.
    2025, arXiv:2501.03884.
    """
    loss = getattr(config, "loss", "simpo")
    sums = batch.mean_by_rollout(batch.logprobs) if loss in ("ipo", "simpo") else batch.sum_by_rollout(batch.logprobs)
    logps = of_pairs(batch, sums)
    rewards = [shaped(one, getattr(config, "alpha", 0.0)) for one in logps]
    nll = getattr(config, "cpo_alpha", 0.0)
    return Losses(
        per="pair",
        loss=compared(rewards[0] - rewards[1], loss, config.beta, config.gamma, config.label_smoothing),
        terms={"nll": Term(per="chosen_token", loss=-nll * batch.logprobs)} if nll > 0 else {},
        metrics=reward_metrics(config.beta * rewards[0], config.beta * rewards[1], logps),
        some_metrics=token_metrics(batch, nll=True),
    )


def compared(difference: torch.Tensor, loss: str, beta: float, gamma: float, smoothing: float) -> torch.Tensor:
    """[pairs] a loss of the difference of rewards; all but sigmoid, hinge and ipo have a margin to reach, gamma."""
    if loss == "hinge":
        return (1 - beta * difference).relu()
    if loss == "ipo":
        return (difference - 1 / (2 * beta)).square()
    return smoothed(beta * difference - (gamma if loss != "sigmoid" else 0.0), smoothing)


def _objective(name: str, config: type[ObjectiveConfig], **facts: Any) -> Objective:
    return Objective(
        name=name,
        config=config,
        advantages=rows_as_pairs,
        loss=pair_losses,
        needs=lambda options: Needs(pairs=True, logits=True),
        data="preference",
        **facts,
    )


SIMPO_MARGIN = "-log sigmoid(beta (mean log p(w) - mean log p(l)) - gamma), means over the tokens of a text; mean over pairs"
NLL = "+ cpo_alpha times -log p of each chosen token, mean over all of the step"

CPO = _objective(
    "cpo",
    CPOConfig,
    formula=(
        "sigmoid: -log sigmoid(beta x), x = log p(w) - log p(l); hinge: max(0, 1 - beta x)\n"
        "ipo: (x - 1 / (2 beta))^2, simpo: -log sigmoid(beta x - gamma), x = mean log p(w) - mean log p(l)\n"
        f"mean over pairs; {NLL}; w chosen, l rejected"
    ),
    source="Xu et al. 2024, arXiv:2401.08417, eq. 3 to 5",
    summary="Pairs without a reference, and the likelihood of chosen texts.",
    refused=("label_smoothing with hinge or ipo, or gamma without simpo: they would have no effect",),
    paper={"beta": "0.1"},
)
SIMPO = _objective(
    "simpo",
    SimPOConfig,
    formula=f"{SIMPO_MARGIN}\nw chosen, l rejected",
    source="Meng et al. 2024, arXiv:2405.14734, eq. 6",
    summary="Pairs without a reference, by mean log-probs with a margin to reach.",
    paper={"beta": "2 to 2.5", "gamma": "0.3 to 1.6"},
)
CPO_SIMPO = _objective(
    "cpo_simpo",
    CPOSimPOConfig,
    formula=f"{SIMPO_MARGIN}\n{NLL}; w chosen, l rejected",
    source="arXiv:2405.14734, eq. 6, with the likelihood of arXiv:2401.08417, eq. 5",
    summary="SimPO with the likelihood of chosen texts beside it.",
)
ALPHAPO = _objective(
    "alphapo",
    AlphaPOConfig,
    formula=(
        "-log sigmoid(beta (r(w) - r(l)) - gamma), mean over pairs\n"
        "r = (1 - p^-alpha) / alpha, p = exp(mean log-prob of the text's tokens), w chosen, l rejected"
    ),
    source="Gupta et al. 2025, arXiv:2501.03884",
    summary="SimPO with another shape of reward, which sets how hard unlikely texts are pushed.",
)
