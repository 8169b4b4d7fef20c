"""Distillation by divergence: a student that is held against a teacher's distributions, on given texts (GKD) or on its own (OPD)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses, Normalization
from agentrl.objectives.needs import Needs, Teacher
from agentrl.objectives.policy import PolicyConfig, policy_needs, policy_objective, ratio_to_anchor
from agentrl.objectives.sft import no_advantages
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals, MemberSignals

Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0, le=10)]
Count = Annotated[int, Field(ge=1)]

REWARDED = (
    *("baseline", "scale_rewards", "reward_weights", "reward_aggregation", "turn_discount", "overlong_length", "dynamic_sampling"),
    *("kl_in", "running_baseline"),
)
"""Options that have no effect where rewards do not count."""
NO_REWARDS = "options about rewards with reward_coef 0: they would have no effect"


class GKDConfig(ObjectiveConfig):
    """Options of GKD."""

    name: Literal["gkd"] = "gkd"
    beta: Share = 0.5
    """0 is KL(teacher | student), 1 is KL(student | teacher), between them is the generalized Jensen-Shannon divergence."""
    temperature: Temperature = 0.9
    """Of both distributions."""
    top_k: Count | None = None
    """Compare the teacher's k most likely tokens and the rest as one; null compares the whole vocabulary."""
    lmbda: Share = 0.0
    """Share of each step's texts that the policy samples itself, of the prompts of the same dataset; the others are the dataset's. 0 is an
    offline run, 1 learns from the policy's own texts alone."""
    seq_kd: bool = False
    """Let the teacher write the other texts: of the dataset's rows the prompts alone count, and the teacher samples their completions as
    `sampling` says. Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947), with the divergence in the place of the NLL."""

    @model_validator(mode="after")
    def _written_texts_are_trained(self) -> GKDConfig:
        if self.seq_kd and self.lmbda == 1:
            raise ValueError("seq_kd lets the teacher write the texts that the policy does not, and lmbda=1 leaves none: lower lmbda")
        return self


class OPDConfig(PolicyConfig):
    """Options of on-policy distillation."""

    refuses: ClassVar[tuple[str, ...]] = (
        "estimate sampled with another mixture than 1, or with a temperature: it estimates KL(student | teacher) as the run samples",
        "top_k without estimate top_k, or that without top_k: they belong together",
        NO_REWARDS,
        "ratio_max where nothing is learned from sampled tokens: it bounds their weight",
    )
    name: Literal["opd"] = "opd"
    estimate: Literal["full", "top_k", "sampled"] = "full"
    """The divergence of each token's whole distribution (`full`), of the teacher's `top_k` tokens and the rest as one (`top_k`), or an
    estimate by the token that was sampled, as an advantage (`sampled`), which needs nothing of the teacher but that token's log-prob."""
    mixture: Share = 1.0
    """1 is KL(student | teacher), 0 is KL(teacher | student), between them is the generalized Jensen-Shannon divergence."""
    temperature: Temperature | None = None
    """Of both distributions in the divergence; null takes the one at which the run samples."""
    top_k: Count | None = None
    """The k of `estimate: top_k`."""
    reward_coef: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the rewards' policy gradient beside the distillation; 0 reads no rewards."""
    ratio_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 5.0
    """Upper bound of policy / sampler, by which what is learned from sampled tokens is weighted; null has none."""
    normalization: Normalization = "token_mean"

    @model_validator(mode="after")
    def _one_estimate(self) -> OPDConfig:
        found = without_effect(self)
        if self.estimate == "sampled" and self.mixture != 1:
            found.append(f"estimate sampled is one of KL(student | teacher), and mixture={self.mixture} asks for another divergence: set 1")
        if self.estimate == "sampled" and self.temperature is not None:
            found.append("estimate sampled reads log-probs at the temperature at which the run samples: remove temperature")
        if self.estimate != "sampled" and self.reward_coef == 0 and self.ratio_max != type(self).model_fields["ratio_max"].default:
            found.append("ratio_max bounds the weight of sampled tokens, and whole distributions are learned alone: remove it")
        if (self.estimate == "top_k") != (self.top_k is not None):
            found.append("top_k is the number of tokens of estimate top_k: set both, or none of them")
        if found:
            raise ValueError("; ".join(found))
        return self


def without_effect(config: Any) -> list[str]:
    """Options about rewards where those do not count, a sentence each."""
    fields = type(config).model_fields
    changed = [name for name in REWARDED if getattr(config, name) != fields[name].default]
    return [f"{name} is about rewards, and reward_coef is 0: set that, or remove {name}" for name in changed if config.reward_coef == 0]


def taught_needs(config: Any, teacher: Teacher) -> Needs:
    """What the shared options ask for, and a teacher; rewards only where they count."""
    needs = replace(policy_needs(config), teacher=teacher)
    if config.reward_coef > 0:
        return needs
    return replace(needs, rewards=False, group_size=1, by_part=False)


def with_rewards(groups: Sequence[GroupSignals], config: Any, own: Sequence[Sequence[np.ndarray]]) -> list[Credit]:
    """[trained] a member: what the teacher says, and what rewards say times `reward_coef`.

    Args:
        groups: of the step.
        config: of an objective with `reward_coef`.
        own: the teacher's part for each member of each group.
    """
    from agentrl.objectives.credit import compared_rewards

    if config.reward_coef == 0:
        return [Credit(advantages=list(parts)) for parts in own]
    found = []
    for given, parts in zip(compared_rewards(groups, config), own, strict=True):
        rewards = given.advantages if isinstance(given, Credit) else given
        found.append(Credit(advantages=[config.reward_coef * reward + part for reward, part in zip(rewards, parts, strict=True)]))
    return found


def teacher_gap(member: MemberSignals) -> np.ndarray:
    """[trained] float64: log(teacher / sampler) of each sampled token, in nats."""
    assert member.teacher_logprobs is not None, "the objective asks for a teacher's log-probs"
    return np.asarray(member.teacher_logprobs, dtype=np.float64) - np.asarray(member.sampler_logprobs, dtype=np.float64)


def gkd_losses(batch: TokenBatch, config: GKDConfig) -> Losses:
    """The divergence of teacher and student at each trained token, in nats.

    Args:
        batch: divergence [tokens], with gradient; logprobs [tokens]; correct [tokens] or None.
        config: beta and temperature, which the learner was told by `needs`.

    Returns: loss [tokens]. Metrics [tokens]: `nll` at the temperature at which the run samples, `mean_token_accuracy`.

    Source: Agarwal et al. 2024, arXiv:2306.13649, eq. 1 and algorithm 1.
    """
    assert batch.divergence is not None, "GKD asks for a teacher"
    metrics = {"nll": -batch.logprobs.detach()}
    if batch.correct is not None:
        metrics["mean_token_accuracy"] = batch.correct.to(batch.divergence.dtype)
    return Losses(per="token", loss=batch.divergence, metrics=metrics)


def opd_advantages(groups: Sequence[GroupSignals], config: OPDConfig) -> list[Credit]:
    """[trained] a member: log(teacher / sampler) of each token where the estimate is `sampled`, and the rewards' part."""
    sampled = config.estimate == "sampled"
    own = [[teacher_gap(member) if sampled else np.zeros(len(member.sampler_logprobs)) for member in group.members] for group in groups]
    return with_rewards(groups, config, own)


def opd_losses(batch: TokenBatch, config: OPDConfig) -> Losses:
    """The divergence of each token, or -sg(min(r, ratio_max)) A logp with A = log(teacher / sampler), whose mean is the same gradient.

    Args:
        batch: divergence [tokens] unless the estimate is `sampled`; logprobs, the anchor's log-probs and advantages [tokens].
        config: estimate, ratio_max, reward_coef.

    Returns: loss [tokens]. Metrics [tokens]: `divergence`, or `teacher_kl`: log(sampler / teacher) of each sampled token.

    Sources: on-policy data under any divergence: Agarwal et al. 2024, arXiv:2306.13649; by sampled tokens: Gu et al. 2024,
    arXiv:2306.08543, eq. 2, without the rewards of later tokens.
    """
    weight = ratio_to_anchor(batch, config).detach()
    if config.ratio_max is not None:
        weight = weight.clamp(max=config.ratio_max)
    gradient = -weight * batch.advantages * batch.logprobs
    if config.estimate == "sampled":
        assert batch.teacher_logprobs is not None, "OPD asks for a teacher"
        return Losses(per="token", loss=gradient, metrics={"teacher_kl": batch.sampler_logprobs - batch.teacher_logprobs})
    assert batch.divergence is not None, "OPD asks for a teacher"
    loss = batch.divergence if config.reward_coef == 0 else batch.divergence + gradient
    return Losses(per="token", loss=loss, metrics={"divergence": batch.divergence.detach()})


def _opd_needs(config: OPDConfig) -> Needs:
    if config.estimate == "sampled":
        return taught_needs(config, Teacher(logprobs=True))
    return taught_needs(config, Teacher(divergence=config.mixture, temperature=config.temperature, top_k=config.top_k))


GKD = Objective(
    name="gkd",
    config=GKDConfig,
    advantages=no_advantages,
    loss=gkd_losses,
    needs=lambda config: Needs(
        teacher=Teacher(divergence=config.beta, temperature=config.temperature, top_k=config.top_k, writes=config.seq_kd),
        own_share=config.lmbda,
        rewards=False,
    ),
    normalization=lambda config: "token_mean",
    data="supervised",
    formula=(
        "beta KL(T | M) + (1 - beta) KL(S | M), M = (1 - beta) S + beta T; KL(T | S) at beta 0, KL(S | T) at beta 1\n"
        "T teacher, S student, both at the temperature; mean over all trained tokens of the step"
    ),
    source="Agarwal et al. 2024, arXiv:2306.13649, eq. 1",
    summary="Brings the policy's distributions near a teacher's on the texts of a dataset, and where asked on its own.",
    paper={"beta": "0, 0.1, 0.5, 0.9, 1", "temperature": "1", "lmbda": "0, 0.5, 1"},
    refused=("seq_kd with lmbda 1: no text would be left for the teacher to write",),
)
OPD = policy_objective(
    "opd",
    OPDConfig,
    opd_losses,
    advantages=opd_advantages,
    needs=_opd_needs,
    zero_advantage_is_zero_loss=lambda config: False,
    formula=(
        "full: KL(S | T) of each token's whole distribution; top_k: of the teacher's k tokens and the rest as one\n"
        "sampled: -sg(min(r, ratio_max)) A logp, A = log(teacher / sampler), r = policy / sampler\n"
        "plus reward_coef times the same with the rewards' advantage; mean over all tokens of the step"
    ),
    source="Agarwal et al. 2024, arXiv:2306.13649; sampled: Gu et al. 2024, arXiv:2306.08543, eq. 2",
    summary="Brings the policy near a teacher on its own rollouts, in any environment, with rewards or without.",
    paper={"ratio_max": "none"},
)
