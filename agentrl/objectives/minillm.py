"""MiniLLM: reverse KL by policy gradient, each token credited with the disagreement that comes after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.distillation import NO_REWARDS, Share, taught_needs, teacher_gap, with_rewards, without_effect
from agentrl.objectives.grpo import CLIPPED, ClipConfig, clipped_tokens
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.needs import Teacher
from agentrl.objectives.policy import policy_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.needs import Needs
    from agentrl.objectives.signals import Credit, GroupSignals


class MiniLLMConfig(ClipConfig):
    """Options of MiniLLM."""

    refuses: ClassVar[tuple[str, ...]] = (
        *ClipConfig.refuses,
        "a token's own disagreement in neither the advantage (own) nor the single step: it would count nowhere",
        "gamma 0 without own: nothing would be credited",
        NO_REWARDS,
    )
    name: Literal["minillm"] = "minillm"
    gamma: Share = 1.0
    """Discount a token of what comes later; 0 credits each token with itself alone."""
    length_normalization: bool = True
    """Divide what comes by its (discounted) number of tokens, so that long rollouts do not learn to be short."""
    own: bool = False
    """Credit a token also with itself, whose part of the gradient `single_step` gives without sampling noise."""
    single_step: bool = True
    """Add KL(student | teacher) of each token's whole distribution."""
    reward_coef: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the rewards' advantage beside the teacher's; 0 reads no rewards."""
    normalization: Normalization = "token_mean"

    @model_validator(mode="after")
    def _something_counts(self) -> MiniLLMConfig:
        found = without_effect(self)
        if not self.own and self.gamma == 0 and self.reward_coef == 0:
            found.append("gamma 0 without own credits a token with nothing: set own, or gamma above 0")
        if not self.own and not self.single_step:
            found.append("a token's own disagreement counts nowhere: set own or single_step")
        if found:
            raise ValueError("; ".join(found))
        return self


def discounted(gaps: np.ndarray, config: MiniLLMConfig) -> np.ndarray:
    """[trained] of one rollout: the sum over s > t, with `own` over s >= t, of gamma^(s - t) a_s.

    Where lengths are normalized it is divided by the sum of the same powers; 0 where nothing comes.
    """
    total = count = 0.0
    found = np.zeros(len(gaps))
    for place in reversed(range(len(gaps))):
        later, steps = config.gamma * total, config.gamma * count
        total, count = gaps[place] + later, 1.0 + steps
        sums, number = (total, count) if config.own else (later, steps)
        found[place] = (sums / number if number > 0 else 0.0) if config.length_normalization else sums
    return found


def minillm_advantages(groups: Sequence[GroupSignals], config: MiniLLMConfig) -> list[Credit]:
    """[trained] a member, float64: the discounted log(teacher / sampler), and the rewards' part.

    Source: Gu et al. 2024, arXiv:2306.08543, eq. 2 and sec. 2.2, length normalization.
    """
    own = [[discounted(teacher_gap(member), config) for member in group.members] for group in groups]
    return with_rewards(groups, config, own)


def minillm_losses(batch: TokenBatch, config: MiniLLMConfig) -> Losses:
    """GRPO's clipped surrogate; term [tokens] `single_step`: KL(student | teacher). Metrics [tokens]: the clip's, `teacher_kl`."""
    found = clipped_tokens(batch, config)
    assert batch.teacher_logprobs is not None, "MiniLLM asks for a teacher"
    metrics = dict(found.metrics) | {"teacher_kl": batch.sampler_logprobs - batch.teacher_logprobs}
    if not config.single_step:
        return Losses(per="token", loss=found.loss, metrics=metrics)
    assert batch.divergence is not None, "single_step asks for whole distributions"
    return Losses(per="token", loss=found.loss, metrics=metrics, terms={"single_step": batch.divergence})


def _needs(config: MiniLLMConfig) -> Needs:
    return taught_needs(config, Teacher(logprobs=True, divergence=1.0 if config.single_step else None))


MINILLM = policy_objective(
    "minillm",
    MiniLLMConfig,
    minillm_losses,
    advantages=minillm_advantages,
    needs=_needs,
    zero_advantage_is_zero_loss=lambda config: False,
    formula=(
        f"{CLIPPED}\nA = mean of log(teacher / sampler) over the later tokens, discounted by gamma\n"
        "plus KL(S | T) of each token's whole distribution; mean over all tokens of the step"
    ),
    source="Gu et al. 2024, arXiv:2306.08543, eq. 2 and 3",
    summary="Reverse KL to a teacher by policy gradient: each token is credited with the disagreement after it.",
    paper={"gamma": "1", "clip_low": "0.2", "normalization": "sequence_sum"},
)
