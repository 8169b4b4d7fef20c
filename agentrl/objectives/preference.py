"""Online preference optimization: pairs of fresh rollouts, and the DPO loss on them. Online DPO and XPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PairConfig(ObjectiveConfig):
    """Options of every objective over pairs."""

    beta: Positive = 0.1
    """How strongly the policy is held to the reference: the margin of a pair is beta x (log-ratio of the chosen - of the rejected)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: -log sigmoid of the margin (DPO); `ipo`: its squared distance from 1 / 2, in units of beta."""
    preferences: Literal["reward", "judge"] = "reward"
    """Who says which rollout of a pair is better: the higher reward, or the environment's own comparison of the two."""
    truncated_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Taken off the reward of rollouts that ran out of a budget."""

    @model_validator(mode="after")
    def _penalty_has_a_reward(self) -> PairConfig:
        if self.truncated_penalty and self.preferences == "judge":
            raise ValueError("truncated_penalty is taken off a reward, and preferences judge reads none: remove one of the two")
        return self


class OnlineDPOConfig(PairConfig):
    """Options of Online DPO."""

    name: Literal["online_dpo"] = "online_dpo"
    pairing: Literal["halves", "extremes"] = "halves"
    """`halves`: member m against member m + group_size / 2; `extremes`: the best of a group against its worst."""

    @model_validator(mode="after")
    def _judged_by_halves(self) -> OnlineDPOConfig:
        if self.pairing == "extremes" and self.preferences == "judge":
            raise ValueError("pairing extremes takes the best and the worst by reward, which a judge of pairs does not give: take halves")
        return self


class XPOConfig(PairConfig):
    """Options of XPO."""

    name: Literal["xpo"] = "xpo"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5
    """Weight of the optimism: how far log-probs of the reference's samples are pushed down."""


def rewards_of(group: GroupSignals, config: PairConfig) -> np.ndarray:
    """[members] rewards, truncated rollouts penalized."""
    return np.asarray(group.rewards - config.truncated_penalty * np.array([float(member.truncated) for member in group.members]))


def halves(group: GroupSignals, group_size: int) -> list[tuple[int, int]]:
    """Places of members m and m + group_size / 2, where both are scorable."""
    places = {member.member: place for place, member in enumerate(group.members)}
    half = group_size // 2
    return [(places[member], places[member + half]) for member in range(half) if member in places and member + half in places]


def preferred(group: GroupSignals, pairs: Sequence[tuple[int, int]], config: PairConfig) -> list[tuple[int, int]]:
    """(chosen, rejected) places of those pairs that have a winner."""
    rewards = rewards_of(group, config)
    result = []
    for first, second in pairs:
        if config.preferences == "judge":
            chance = group.preferences.get((first, second), 0.5)
            margin = chance - 0.5
        else:
            margin = rewards[first] - rewards[second]
        if margin != 0:
            result.append((first, second) if margin > 0 else (second, first))
    return result


def pairs_of_groups(groups: Sequence[GroupSignals], config: OnlineDPOConfig) -> list[Credit]:
    """The pairs of each group that have a winner, best of them first chosen; rollouts without a pair are not trained.

    Source: Guo et al. 2024, arXiv:2402.04792, algorithm 1.
    """
    result = []
    for group in groups:
        rewards = rewards_of(group, config)
        if config.pairing == "extremes":
            pairs = [(int(rewards.argmax()), int(rewards.argmin()))] if len(rewards) > 1 else []
        else:
            pairs = halves(group, group.size)
        result.append(_credit(group, preferred(group, pairs, config)))
    return result


def pairs_against_rivals(groups: Sequence[GroupSignals], config: XPOConfig) -> list[Credit]:
    """Each sample of the policy against one of the reference."""
    return [_credit(group, preferred(group, halves(group, group.size), config)) for group in groups]


def _credit(group: GroupSignals, pairs: list[tuple[int, int]]) -> Credit:
    trained = np.zeros(len(group.rewards), dtype=bool)
    for pair in pairs:
        trained[list(pair)] = True
    return Credit(advantages=np.zeros(len(group.rewards)), trained=trained, pairs=pairs)


def pair_losses(batch: TokenBatch, config: PairConfig) -> Losses:
    """The DPO loss of each pair of the micro-batch.

    h = sum over the rollout's trained tokens of log(policy / reference), D = h of the chosen - h of the rejected. sigmoid: -log
    sigmoid(beta D); ipo: (D - 1 / (2 beta))^2, sums and not means of log-probs, as in its paper.

    Args:
        batch: logprobs and reference_logprobs [tokens]; chosen and rejected [pairs].
        config: beta, loss.

    Returns: loss [pairs]. Metrics [pairs]: `rewards/{chosen,rejected,margins,accuracies}`, `logps/{chosen,rejected}`.

    Sources: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; ipo: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    from torch.nn.functional import softplus

    assert batch.reference_logprobs is not None, "pairs are measured against a reference"
    assert batch.chosen is not None, "there are no pairs"
    assert batch.rejected is not None, "there are no pairs"
    scores = batch.sum_by_rollout(batch.logprobs - batch.reference_logprobs)
    sums = batch.sum_by_rollout(batch.logprobs.detach())
    chosen, rejected = scores[batch.chosen], scores[batch.rejected]
    margin = chosen - rejected
    loss = softplus(-config.beta * margin) if config.loss == "sigmoid" else (margin - 1 / (2 * config.beta)).square()
    metrics = {
        "rewards/chosen": config.beta * chosen.detach(),
        "rewards/rejected": config.beta * rejected.detach(),
        "rewards/margins": config.beta * margin.detach(),
        "rewards/accuracies": (margin.detach() > 0).to(loss.dtype),
        "logps/chosen": sums[batch.chosen],
        "logps/rejected": sums[batch.rejected],
    }
    return Losses(per="pair", loss=loss, metrics=metrics)


def optimistic_pair_losses(batch: TokenBatch, config: XPOConfig) -> Losses:
    """The pair's DPO loss + alpha times the log-prob of its rival, the reference's own sample.

    Metrics [pairs]: those of `pair_losses`, `loss/dpo`, `loss/xpo`. Source: Xie et al. 2024, arXiv:2405.21046, algorithm 1, line 6.
    """
    found = pair_losses(batch, config)
    assert batch.rival is not None, "XPO asks for rivals"
    assert batch.chosen is not None
    assert batch.rejected is not None
    sums = batch.sum_by_rollout(batch.logprobs)
    of_rival = sums[batch.chosen].where(batch.rival[batch.chosen], sums[batch.rejected])
    optimism = config.alpha * of_rival
    metrics = found.metrics | {"loss/dpo": found.loss.detach(), "loss/xpo": optimism.detach()}
    return Losses(per="pair", loss=found.loss + optimism, metrics=metrics)


def _needs(config: Any) -> Needs:
    return Needs(reference=True, pairs=True, judge=config.preferences == "judge", group_size=2)


PENALIZED_JUDGE = "truncated_penalty with preferences judge: there is no reward that it could be taken off"

ONLINE_DPO = Objective(
    name="online_dpo",
    config=OnlineDPOConfig,
    advantages=pairs_of_groups,
    loss=pair_losses,
    needs=_needs,
    formula=(
        "sigmoid: -log sigmoid(beta D); ipo: (D - 1 / (2 beta))^2\n"
        "D = log(policy / reference) of the chosen rollout - of the rejected one; mean over pairs"
    ),
    source="Guo et al. 2024, arXiv:2402.04792; losses: arXiv:2305.18290, arXiv:2310.12036",
    summary="DPO on pairs that the policy has just sampled, judged by reward or by the environment's comparison.",
    refused=("pairing extremes with preferences judge: the judge compares fixed pairs, and has no best and worst", PENALIZED_JUDGE),
    paper={"beta": "0.1"},
)
XPO = Objective(
    name="xpo",
    config=XPOConfig,
    advantages=pairs_against_rivals,
    loss=optimistic_pair_losses,
    needs=lambda config: Needs(reference=True, pairs=True, rival=1.0, judge=config.preferences == "judge", group_size=2),
    formula=(
        "-log sigmoid(beta D) + alpha log policy(rival)\n"
        "pairs of a sample of the policy and a rival of the reference; D as in online_dpo; mean over pairs"
    ),
    source="Xie et al. 2024, arXiv:2405.21046, algorithm 1",
    summary="Online DPO with optimism: half of each group is sampled by the reference, and pushed down a little.",
    refused=(PENALIZED_JUDGE,),
    paper={"beta": "0.1", "alpha": "5e-6 and falling"},
)
