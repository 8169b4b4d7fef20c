"""ORPO: likelihood of the chosen text, and the odds of it against the rejected one; without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses, Term
from agentrl.objectives.needs import Needs
from agentrl.objectives.paired import Positive, of_pairs, reward_metrics, rows_as_pairs, token_metrics

if TYPE_CHECKING:
    import torch

    from agentrl.objectives.losses import TokenBatch


class ORPOConfig(ObjectiveConfig):
    """Options of ORPO."""

    name: Literal["orpo"] = "orpo"
    beta: Positive = 0.1
    """Weight of the odds ratio beside the likelihood: the paper's lambda."""


def log_odds(means: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = exp(mean log-prob); a text that is certain has the odds of the largest number below 1, and no slope."""
    import torch

    capped = means.clamp(max=-torch.finfo(means.dtype).eps)
    return capped - (-capped.expm1()).log()


def odds_losses(batch: TokenBatch, config: ORPOConfig) -> Losses:
    """-beta log sigmoid(log odds of the chosen text - of the rejected one), and beside it -log p of each chosen token.

    Odds are of p = exp(mean log-prob of the text's tokens). The likelihood is that of the completion given the prompt, as in the paper, and
    a mean over all chosen tokens of the step; TRL and the authors' code train the prompt's tokens too.

    Args:
        batch: logprobs, correct, mean_logits [tokens]; chosen, rejected [pairs].
        config: beta.

    Returns: loss [pairs], term `nll` of chosen tokens. Metrics: `rewards/*` and `logps/*` of mean log-probs, `log_odds_ratio`,
    `log_odds_chosen` [pairs], `logits/*`, `nll_loss`, `mean_token_accuracy`.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 4, 6 and 7.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = of_pairs(batch, batch.mean_by_rollout(batch.logprobs))
    odds = log_odds(chosen) - log_odds(rejected)
    ratio = logsigmoid(odds)
    metrics = reward_metrics(config.beta * chosen, config.beta * rejected, (chosen, rejected))
    metrics |= {"log_odds_ratio": ratio.detach(), "log_odds_chosen": odds.detach()}
    return Losses(
        per="pair",
        loss=-config.beta * ratio,
        terms={"nll": Term(per="chosen_token", loss=-batch.logprobs)},
        metrics=metrics,
        some_metrics=token_metrics(batch, nll=True),
    )


ORPO = Objective(
    name="orpo",
    config=ORPOConfig,
    advantages=rows_as_pairs,
    loss=odds_losses,
    needs=lambda config: Needs(pairs=True, logits=True),
    data="preference",
    formula=(
        "-log p of each chosen token, mean over all of the step, - beta log sigmoid(log odds(w) - log odds(l)), mean over pairs\n"
        "odds(y) = p / (1 - p), p = exp(mean log-prob of the tokens of y), w chosen, l rejected"
    ),
    source="Hong et al. 2024, arXiv:2403.07691, eq. 4, 6 and 7",
    summary="Likelihood of chosen texts and their odds against rejected ones in one stage, without a reference.",
    paper={"beta": "0.1"},
)
