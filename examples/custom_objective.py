"""An objective of one's own: the likelihood of each group's best rollouts (RAFT, Dong et al. 2023, arXiv:2304.06767).

    agentrl train examples/quickstart.yaml --set 'imports=["examples/custom_objective.py"]' --objective best_of_group
    agentrl objectives show best_of_group --import examples/custom_objective.py

It has the parts that every objective has: options, a signal over whole groups, and a loss that is not reduced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from agentrl import objectives

if TYPE_CHECKING:
    from collections.abc import Sequence


class BestOfGroupConfig(objectives.ObjectiveConfig):
    """The options, as a run file has them under `objective`."""

    name: Literal["best_of_group"] = "best_of_group"
    best: Annotated[int, Field(ge=1)] = 1
    """How many rollouts of each group are trained; more where rewards are equal, none where all are."""


def best_members(groups: Sequence[objectives.GroupSignals], config: BestOfGroupConfig) -> list[np.ndarray]:
    """[members] for each group of the step: 1 for its best, 0 for the others."""
    chosen = []
    for group in groups:
        least = np.sort(group.rewards)[-min(config.best, len(group.rewards))]
        chosen.append(((group.rewards >= least) & (group.rewards > group.rewards.min())).astype(np.float64))
    return chosen


def negative_log_likelihood(batch: objectives.TokenBatch, config: BestOfGroupConfig) -> objectives.Losses:
    """[tokens], not divided by anything: the learner knows the denominators of the whole step."""
    return objectives.Losses(per="token", loss=-batch.advantages * batch.logprobs, metrics={"best/share": batch.advantages})


objectives.register(
    objectives.Objective(
        name="best_of_group",
        config=BestOfGroupConfig,
        advantages=best_members,
        loss=negative_log_likelihood,
        needs=lambda config: objectives.Needs(group_size=2),
        normalization=lambda config: "token_mean",
        zero_advantage_is_zero_loss=lambda config: True,  # the others need not be computed
        summary="Imitates the best rollouts of each group.",
        formula="-log policy of the best rollouts\nsum over their tokens / all tokens of the step",
        source="RAFT, Dong et al. 2023, arXiv:2304.06767",
    )
)
