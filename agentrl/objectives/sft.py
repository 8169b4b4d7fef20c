"""Supervised fine-tuning: the likelihood of given tokens, those of a dataset or of chosen rollouts of an earlier run.

A mixture of experts is trained by this loss alone: no loss that balances its routers is added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals


class SftConfig(ObjectiveConfig):
    """Options of `sft`."""

    name: Literal["sft"] = "sft"
    loss: Literal["nll", "dft"] = "nll"
    """`nll`: -log p of each trained token. `dft`: the same times p, without its gradient, so that tokens that the policy finds absurd do
    not dominate the step."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the loss that is -log p averaged over the whole vocabulary, instead of the trained token's."""
    neftune_alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Uniform noise of at most alpha / sqrt(length x width) on each number of the embeddings while it trains; 0 adds none."""

    @model_validator(mode="after")
    def _smoothing_is_of_the_likelihood(self) -> SftConfig:
        if self.label_smoothing and self.loss == "dft":
            raise ValueError(f"label_smoothing={self.label_smoothing} smooths the likelihood, and loss is dft: set it to 0, or loss to nll")
        return self


def no_advantages(groups: Sequence[GroupSignals], config: ObjectiveConfig) -> list[np.ndarray]:
    """All 0: every text counts alike, whatever it was rewarded with."""
    return [np.zeros(len(group.rewards)) for group in groups]


def likelihood(batch: TokenBatch, config: SftConfig) -> Losses:
    """-w log p of each trained token, in nats, at the temperature at which the run samples; w is 1, or p without its gradient.

    Args:
        batch: logprobs [tokens]; correct [tokens]; uniform_logprobs [tokens] for smoothing; values [tokens] where the learner has a
            critic, which learns nothing here.
        config: which w.

    Returns: loss [tokens]. Metrics [tokens]: `nll`, `mean_token_accuracy`, and with `dft` its weight `dft/weight`.

    Source: maximum likelihood; of chosen rollouts, rejection sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825) and best-of-n as in
    RAFT (Dong et al. 2023, arXiv:2304.06767). dft: Wu et al. 2025, arXiv:2508.05629, eq. 9. Smoothing: Szegedy et al.
    2016, arXiv:1512.00567, sec. 7.
    """
    loss = -batch.logprobs
    metrics = {"nll": -batch.logprobs.detach()}
    if config.loss == "dft":
        weight = batch.logprobs.detach().exp()
        loss = weight * loss
        metrics["dft/weight"] = weight
    if config.label_smoothing:
        assert batch.uniform_logprobs is not None
        loss = (1 - config.label_smoothing) * loss - config.label_smoothing * batch.uniform_logprobs
    if batch.correct is not None:
        metrics["mean_token_accuracy"] = batch.correct.to(loss.dtype)
    if batch.values is not None:
        loss = loss + 0.0 * batch.values  # keeps the critic in the graph: ranks wait for the gradient of every parameter
    return Losses(per="token", loss=loss, metrics=metrics)


SFT = Objective(
    name="sft",
    config=SftConfig,
    advantages=no_advantages,
    loss=likelihood,
    needs=lambda config: Needs(noise=config.neftune_alpha, uniform=config.label_smoothing > 0),
    normalization=lambda config: "token_mean",
    data="supervised",
    formula="-w log p, mean over all trained tokens of the step\nw = 1 (nll), or p without its gradient (dft)\n"
    "label_smoothing e: -(1 - e) log p - e (mean of log p over the vocabulary)",
    source="arXiv:2308.01825; dft: arXiv:2508.05629, eq. 9; noise: arXiv:2310.05914, algorithm 1",
    refused=["label_smoothing with loss dft: it smooths the likelihood"],
    summary="Learns the texts of a dataset, or chosen rollouts of an earlier run, token by token.",
)

IMITATION = replace(SFT, data=None)
"""The same of rollouts as they were sampled, for a warm start."""
