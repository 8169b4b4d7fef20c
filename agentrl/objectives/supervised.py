"""The likelihood of chosen rollouts, for a warm start. It is no online objective, and so not in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.objectives.base import Losses, Objective, ObjectiveConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.base import GroupSignals, TokenBatch


class SupervisedConfig(ObjectiveConfig):
    """It has no options."""

    name: Literal["warm_start_nll"] = "warm_start_nll"


def no_advantages(groups: Sequence[GroupSignals], config: SupervisedConfig) -> list[np.ndarray]:
    """All 0: whoever is here is imitated, whatever the rewards: they were looked at when the rollouts were chosen."""
    return [np.zeros(len(group.rewards)) for group in groups]


def negative_log_likelihood(batch: TokenBatch, config: SupervisedConfig) -> Losses:
    """-log policy of each sampled token, in nats, at the temperature at which the run samples.

    Args:
        batch: logprobs [tokens]; values [tokens] where the learner has a critic, which learns nothing here.
        config: without options.

    Returns: loss [tokens]. Metrics [tokens]: `nll`.

    Source: rejection sampling fine-tuning, Yuan et al. 2023, arXiv:2308.01825; best-of-n as in RAFT, Dong et al. 2023, arXiv:2304.06767.
    """
    loss = -batch.logprobs
    if batch.values is not None:
        loss = loss + 0.0 * batch.values  # keeps the critic in the graph: ranks wait for the gradient of every parameter
    return Losses(per="token", loss=loss, metrics={"nll": -batch.logprobs.detach()})


WARM_START_NLL = Objective(
    name="warm_start_nll",
    config=SupervisedConfig,
    advantages=no_advantages,
    loss=negative_log_likelihood,
    normalization=lambda config: "token_mean",
    formula="-log policy, mean over all tokens of the step",
    source="arXiv:2308.01825",
    summary="Imitates chosen rollouts of an earlier run.",
)
