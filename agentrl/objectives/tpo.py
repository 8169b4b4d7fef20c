"""TPO: pairs without a reference, and the likelihood of a third text, the gold one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import model_validator

from agentrl.errors import ConfigError
from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.cpo import check_compared, compared
from agentrl.objectives.losses import Losses, Term
from agentrl.objectives.needs import Needs
from agentrl.objectives.paired import NotNegative, Positive, Smoothing, of_pairs, reward_metrics, token_metrics, where_in
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.examples import Example
    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals


class TPOConfig(ObjectiveConfig):
    """Options of TPO."""

    name: Literal["tpo"] = "tpo"
    beta: Positive = 0.01
    """How much a difference of log-probs counts."""
    loss: Literal["sigmoid", "hinge", "ipo", "tpo_l"] = "sigmoid"
    """`sigmoid`, `hinge`: of the difference of whole log-probs; `ipo`, `tpo_l`: of mean log-probs a token."""
    tpo_alpha: NotNegative = 1.0
    """Weight of the likelihood of gold texts; 0 leaves them out, and rows need none."""
    gamma: NotNegative = 0.5
    """Of `tpo_l`: the margin to reach."""
    label_smoothing: Smoothing = 0.0
    """The chance that a pair's label is wrong, for sigmoid and tpo_l."""

    @model_validator(mode="after")
    def _consistent(self) -> TPOConfig:
        check_compared(self, with_margin="tpo_l")
        return self


def with_gold(examples: Sequence[Example], config: TPOConfig) -> Sequence[Example]:
    """The examples as they are; raises `ConfigError` for one without a gold text."""
    missing = next((example for example in examples if len(example.texts) < 3), None)
    if missing is not None and config.tpo_alpha > 0:
        raise ConfigError(
            f"{missing.where}: objective tpo learns from a third text, the gold one, and this row has {len(missing.texts)}: give rows a "
            "column `reference` beside `chosen` and `rejected`, or set objective.tpo_alpha=0, which compares the two alone"
        )
    return examples


def rows_as_triples(groups: Sequence[GroupSignals], config: TPOConfig) -> list[Credit]:
    """Each row's chosen text with its rejected one and, where it counts, its gold one."""
    members = (0, 1, 2) if config.tpo_alpha > 0 else (0, 1)
    return [Credit(advantages=np.zeros(len(group.rewards)), pairs=[members]) for group in groups]


def triple_losses(batch: TokenBatch, config: TPOConfig) -> Losses:
    """A loss of x = log p of the chosen text - of the rejected one, and beside it tpo_alpha times -log p of each gold token.

    sigmoid: -log sigmoid(beta x), smoothed; tpo_l: -log sigmoid(beta x - gamma), smoothed, of means over tokens; hinge: max(0, 1 - beta x);
    ipo: (x - 1 / (2 beta))^2 of means. The likelihood is a mean over all gold tokens of the step.

    Args:
        batch: logprobs, correct, mean_logits [tokens]; chosen, rejected and, with tpo_alpha, gold [pairs].
        config: all of it.

    Returns: loss [pairs], term `nll` of gold tokens. Metrics: `rewards/*`, `logps/*` as the loss reads them, `logits/*`,
    `mean_token_accuracy`, `nll_loss` of gold tokens.

    Source: Saeidi et al. 2024, arXiv:2405.16681.
    """
    by_token = config.loss in ("ipo", "tpo_l")
    logps = of_pairs(batch, batch.mean_by_rollout(batch.logprobs) if by_token else batch.sum_by_rollout(batch.logprobs))
    some = token_metrics(batch)
    terms = {}
    if config.tpo_alpha > 0:
        assert batch.gold is not None, "rows have gold texts"
        terms["nll"] = Term(per="gold_token", loss=-config.tpo_alpha * batch.logprobs)
        some["nll_loss"] = where_in(batch, -batch.logprobs, batch.gold)
    return Losses(
        per="pair",
        loss=compared(logps[0] - logps[1], config.loss, config.beta, config.gamma, config.label_smoothing),
        terms=terms,
        metrics=reward_metrics(config.beta * logps[0], config.beta * logps[1], logps),
        some_metrics=some,
    )


TPO = Objective(
    name="tpo",
    config=TPOConfig,
    advantages=rows_as_triples,
    loss=triple_losses,
    needs=lambda config: Needs(pairs=True, logits=True),
    prepare=with_gold,
    data="preference",
    formula=(
        "sigmoid: -log sigmoid(beta x), x = log p(w) - log p(l); hinge: max(0, 1 - beta x)\n"
        "ipo: (x - 1 / (2 beta))^2, tpo_l: -log sigmoid(beta x - gamma), x = mean log p(w) - mean log p(l); mean over pairs\n"
        "+ tpo_alpha times -log p of each token of the gold text, mean over all of the step; w chosen, l rejected"
    ),
    source="Saeidi et al. 2024, arXiv:2405.16681",
    summary="Pairs without a reference, and the likelihood of a gold text beside them.",
    refused=("label_smoothing with hinge or ipo, or gamma without tpo_l: they would have no effect",),
    paper={"beta": "0.01"},
)
