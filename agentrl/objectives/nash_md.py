"""Nash-MD: the policy against a mixture of itself and the reference, towards the equilibrium of a preference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.preference import halves
from agentrl.objectives.signals import Credit
from agentrl.objectives.surrogate import importance_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals


class NashMDConfig(ObjectiveConfig):
    """Options of Nash-MD."""

    name: Literal["nash_md"] = "nash_md"
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """tau of the paper: weight of the KL to the reference."""
    mixture: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the reference in the geometric mixture that samples the rivals."""
    preferences: Literal["reward", "judge"] = "reward"
    """P(rollout beats its rival): sigmoid of the difference of their rewards, or what the environment's comparison says."""
    ratio_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    """Cap of the importance ratio of a rollout that a stale policy sampled."""


def chances_to_win(groups: Sequence[GroupSignals], config: NashMDConfig) -> list[Credit]:
    """P - 1/2 for each sample of the policy, against its rival; rivals are not trained.

    Source: Munos et al. 2023, arXiv:2312.00886, sec. 7 (P - 1/2 is the paper's own baseline).
    """
    found = []
    for group in groups:
        advantages, trained = np.zeros(len(group.rewards)), np.zeros(len(group.rewards), dtype=bool)
        for first, second in halves(group, group.size):
            if config.preferences == "judge":
                chance = group.preferences.get((first, second))
                if chance is None:
                    continue
            else:
                chance = 1 / (1 + np.exp(-np.clip(group.rewards[first] - group.rewards[second], -500, 500)))
            advantages[first], trained[first] = chance - 0.5, True
        found.append(Credit(advantages=advantages, trained=trained))
    return found


def regularized_score(batch: TokenBatch, config: NashMDConfig) -> Losses:
    """-sg(w (P - 1/2 - beta h)) times the rollout's log-prob, h = its log(policy / reference).

    w = min(policy / sampler of the rollout, ratio_max), 1 on policy. The KL is that of whole rollouts, as in the paper; a token-wise
    product of log-ratio and log-prob would leave out what a token does to those after it.

    Returns: loss [rollouts]. Metrics [rollouts]: `rewards/probabilities`, `loss/kl`, `loss/score`.

    Source: Munos et al. 2023, arXiv:2312.00886, sec. 7, eq. of the policy gradient.
    """
    assert batch.reference_logprobs is not None, "Nash-MD asks for a reference"
    score = batch.sum_by_rollout(batch.logprobs)
    against = batch.sum_by_rollout(batch.logprobs.detach() - batch.reference_logprobs)
    weight = importance_ratio(batch.sum_by_rollout(batch.logprobs.detach() - batch.sampler_logprobs)).clamp(max=config.ratio_max)
    pull, push = config.beta * against * weight * score, -batch.rollout_advantages * weight * score
    metrics = {"rewards/probabilities": batch.rollout_advantages + 0.5, "loss/kl": pull.detach(), "loss/score": push.detach()}
    return Losses(per="rollout", loss=pull + push, metrics=metrics)


def _needs(config: Any) -> Needs:
    return Needs(reference=True, rival=config.mixture, judge=config.preferences == "judge", group_size=2)


NASH_MD = Objective(
    name="nash_md",
    config=NashMDConfig,
    advantages=chances_to_win,
    loss=regularized_score,
    needs=_needs,
    formula=(
        "-sg(w (P - 1/2 - beta log(policy / reference))) log policy, of whole rollouts\n"
        "P = chance to beat a rival sampled from policy^(1 - mixture) reference^mixture, token by token; mean over the policy's rollouts"
    ),
    source="Munos et al. 2023, arXiv:2312.00886",
    summary="Plays against a geometric mixture of policy and reference, towards the Nash equilibrium of the preferences.",
    paper={"mixture": "0.125 to 0.375", "beta": "0.008"},
)
