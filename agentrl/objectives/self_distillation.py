"""A policy that is its own teacher: told more than the student (SDFT), or shown its own successes (SDPO)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.grpo import ClipConfig, clipped_tokens
from agentrl.objectives.losses import Losses, Term
from agentrl.objectives.needs import Needs, Teacher
from agentrl.objectives.policy import policy_needs, policy_objective
from agentrl.objectives.sft import no_advantages
from agentrl.teacher_prompt import TeacherPrompt, missing_places

if TYPE_CHECKING:
    import torch

    from agentrl.objectives.losses import TokenBatch

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Estimate = Literal["full", "top_k", "sampled"]
Who = Literal["base", "live", "ema"]

FURTHEST = 20.0
"""Nats at which log(policy / sampler) is cut before it becomes a weight."""
TAUGHT = "taught"
"""Column that is 0 where a rollout's teacher had nothing to see that the student had not."""


class SDFTConfig(ObjectiveConfig):
    """Options of SDFT."""

    name: Literal["sdft"] = "sdft"
    estimate: Estimate = "top_k"
    """The divergence of each token's whole distribution (`full`), of the student's `top_k` likeliest tokens (`top_k`), or an estimate of
    KL(student | teacher) by the token that was sampled (`sampled`)."""
    alpha: Share = 0.5
    """0 is KL(teacher | student), 1 is KL(student | teacher), between them is the generalized Jensen-Shannon divergence."""
    top_k: Count | None = 100
    """The k of `estimate: top_k`; null with another estimate."""
    tail: bool = False
    """Of `top_k`: compare all other tokens as one; false renormalizes both distributions over the k."""
    is_clip: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 2.0
    """Upper bound of policy / sampler, by which each token's loss is weighted; null weighs nothing."""
    skip_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens at the start of each rollout that learn nothing, where the teacher speaks of what the student has not seen."""
    teacher: Who = "base"
    """The policy as the run began (`base`), as it is now (`live`), or a running mean of its weights (`ema`)."""
    ema_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Of `ema`: teacher = (1 - rate) teacher + rate policy; 1 takes the policy's weights over."""
    ema_every: Count = 1
    """Steps between two such moves."""
    template: str = "{prompt}\n\n{privileged_context}"
    """What the teacher reads in the place of the last user message's text; `privileged_context` is the row's column of that name."""

    @model_validator(mode="after")
    def _consistent(self) -> SDFTConfig:
        found = one_estimate(self)
        found += [f"template has no {{{place}}}" for place in missing_places(self.template, ("prompt", "privileged_context"))]
        if found:
            raise ValueError("; ".join(found))
        return self


class SDPOConfig(ClipConfig):
    """Options of SDPO."""

    name: Literal["sdpo"] = "sdpo"
    weight: Share = 1.0
    """Of the distillation; what is left to 1 is that of the clipped policy gradient of the rewards. Its `distillation_weight`."""
    estimate: Estimate = "sampled"
    """As in `sdft`."""
    alpha: Share = 1.0
    """0 is KL(teacher | student), 1 is KL(student | teacher), between them is the generalized Jensen-Shannon divergence."""
    top_k: Count | None = None
    """The k of `estimate: top_k`."""
    tail: bool = False
    """Of `top_k`: compare all other tokens as one; false renormalizes both distributions over the k."""
    is_clip: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 2.0
    """Upper bound of policy / sampler, by which each token's distillation is weighted; null weighs nothing."""
    teacher: Who = "ema"
    """The policy as the run began (`base`), as it is now (`live`), or a running mean of its weights (`ema`)."""
    ema_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Of `ema`: teacher = (1 - rate) teacher + rate policy; 1 takes the policy's weights over."""
    ema_every: Count = 1
    """Steps between two such moves."""
    success: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Least score of a rollout that is shown to its siblings."""
    solutions: bool = True
    """Show the teacher of a rollout the first successful one of its group."""
    own_solution: bool = False
    """Whether that may be the rollout itself."""
    feedback: bool = False
    """Show the teacher feedback: the row's `privileged_context`, or else what the environment said after the rollout's last turn."""
    feedback_only_without_solution: bool = False
    """Show it only where there is no successful rollout to show."""
    hide_thoughts: bool = False
    """Cut `<think>...</think>` out of what is shown of a successful rollout."""
    max_prompt_tokens: Count | None = 10240
    """A rollout whose teacher would read a longer prompt is not distilled, and counted; nothing is cut."""
    template: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n"
    """What the teacher reads in the place of the last user message's text."""
    solution_template: str = "\nCorrect solution:\n\n{solution}\n\n"
    """What `{solution}` of the template becomes where there is a successful rollout to show."""
    feedback_template: str = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}\n\n"
    """What `{feedback}` of the template becomes where there is feedback."""

    @model_validator(mode="after")
    def _shows_something(self) -> SDPOConfig:
        found = one_estimate(self)
        if not self.solutions and not self.feedback:
            found.append("with solutions and feedback both false the teacher sees what the student sees: set one of them")
        places = (("template", ("prompt", "solution")), ("solution_template", ("solution",)), ("feedback_template", ("feedback",)))
        for name, wanted in places:
            found += [f"{name} has no {{{place}}}" for place in missing_places(getattr(self, name), wanted)]
        if self.feedback and missing_places(self.template, ("feedback",)):
            found.append("template has no {feedback}, and feedback is true")
        if found:
            raise ValueError("; ".join(found))
        return self


def one_estimate(config: Any) -> list[str]:
    """What contradicts `estimate`, a sentence each."""
    found = []
    if config.estimate == "sampled" and config.alpha != 1:
        found.append(f"estimate sampled is one of KL(student | teacher), and alpha={config.alpha} asks for another divergence: set alpha=1")
    if config.estimate == "top_k" and config.top_k is None:
        found.append("estimate top_k needs top_k, such as 100")
    fields = type(config).model_fields
    if config.estimate != "top_k" and (config.tail or config.top_k not in (None, fields["top_k"].default)):
        found.append("top_k and tail are of estimate top_k: remove them, or set that")
    return found


def own_teacher(config: Any, prompt: TeacherPrompt) -> Teacher:
    """What is asked of the policy as its own teacher."""
    sampled = config.estimate == "sampled"
    return Teacher(
        logprobs=sampled,
        divergence=None if sampled else config.alpha,
        top_k=config.top_k if config.estimate == "top_k" else None,
        support="student",
        tail=config.tail,
        who=config.teacher,
        ema_rate=config.ema_rate,
        ema_every=config.ema_every,
        prompt=prompt,
    )


def distilled(batch: TokenBatch, config: Any, skip_tokens: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token's distance from its teacher, and which tokens have one.

    Args:
        batch: divergence [tokens], or teacher_logprobs [tokens] where the estimate is `sampled`; logprobs and sampler_logprobs [tokens];
            column `taught` [tokens].
        config: estimate and is_clip.
        skip_tokens: at the start of each rollout.

    Returns: [rollouts] mean over the tokens that count, 0 where none does; [tokens] the distances; [tokens] 1 where a token counts.

    Source: arXiv:2601.19897 and arXiv:2601.20802. Where the estimate is `sampled`, sg(log S - log T) log S, whose expected
    gradient is that of KL(S | T).
    """
    if config.estimate == "sampled":
        assert batch.teacher_logprobs is not None, "the objective asks for a teacher's log-probs"
        distance = (batch.logprobs - batch.teacher_logprobs).detach() * batch.logprobs
    else:
        assert batch.divergence is not None, "the objective asks for a divergence"
        distance = batch.divergence
    if config.is_clip is not None:
        gap = (batch.logprobs - batch.sampler_logprobs).detach().clamp(-FURTHEST, FURTHEST)
        distance = distance * gap.exp().clamp(max=config.is_clip)
    counts = batch.columns[TAUGHT] * (batch.place >= skip_tokens)
    means = batch.sum_by_rollout(distance * counts) / batch.sum_by_rollout(counts).clamp(min=1)
    return means, distance, counts


def _figures(distance: torch.Tensor, counts: torch.Tensor) -> dict[str, torch.Tensor]:
    nothing = distance.new_full((), float("nan"))
    return {"self_distillation/distillation_loss": distance.detach().where(counts > 0, nothing)}


def sdft_losses(batch: TokenBatch, config: SDFTConfig) -> Losses:
    """The mean distance of each rollout's tokens from what the policy says of them when it is told more.

    Args:
        batch: as in `distilled`.
        config: estimate, is_clip, skip_tokens.

    Returns: loss [rollouts]. Metrics: `self_distillation/distillation_loss`, a mean over tokens.

    Source: Shenfeld et al. 2026, arXiv:2601.19897.
    """
    means, distance, counts = distilled(batch, config, config.skip_tokens)
    return Losses(per="rollout", loss=means, some_metrics=_figures(distance, counts))


def sdpo_tokens(batch: TokenBatch, config: SDPOConfig) -> Losses:
    """The clipped surrogate of each token times 1 - weight; beside it weight times each rollout's mean distance from its teacher.

    Args:
        batch: logprobs, the anchor's log-probs and advantages [tokens]; and as in `distilled`.
        config: weight, clips, estimate, is_clip.

    Returns: loss [tokens], term `distillation` [rollouts]. Metrics: those of the clip, `self_distillation/distillation_loss`, and
    `self_distillation/reprompt_sample_fraction`: tokens of rollouts whose teacher had something to see.

    Source: Huebotter et al. 2026, arXiv:2601.20802.
    """
    found = clipped_tokens(batch, config)
    means, distance, counts = distilled(batch, config)
    return replace(
        found,
        loss=(1 - config.weight) * found.loss,
        terms={"distillation": Term(per="rollout", loss=config.weight * means)},
        some_metrics=_figures(distance, counts),
        token_metrics={**found.token_metrics, "self_distillation/reprompt_sample_fraction": batch.columns[TAUGHT]},
    )


def sdft_needs(config: SDFTConfig) -> Needs:
    """A teacher that is told more, and no rewards."""
    return Needs(rewards=False, teacher=own_teacher(config, TeacherPrompt(shows="row", template=config.template)))


def sdpo_needs(config: SDPOConfig) -> Needs:
    """Groups of rewards, and a teacher that is shown the best of them."""
    prompt = TeacherPrompt(
        shows="siblings",
        template=config.template,
        solution=config.solution_template,
        feedback=config.feedback_template,
        threshold=config.success,
        uses_solutions=config.solutions,
        own_solution=config.own_solution,
        uses_feedback=config.feedback,
        feedback_only_without_solution=config.feedback_only_without_solution,
        hides_thoughts=config.hide_thoughts,
        max_tokens=config.max_prompt_tokens,
    )
    return replace(policy_needs(config), teacher=own_teacher(config, prompt))


DISTANCE = "D = alpha KL(T | M) + (1 - alpha) KL(S | M), M = (1 - alpha) S + alpha T; KL(T | S) at alpha 0, KL(S | T) at alpha 1"
WEIGHED = "S student; T the same policy, its base, or a running mean of it"

SDFT = Objective(
    name="sdft",
    config=SDFTConfig,
    advantages=no_advantages,
    loss=sdft_losses,
    needs=sdft_needs,
    formula=(
        f"min(policy / sampler, is_clip) D, mean over rollouts of token means\n{DISTANCE}\n{WEIGHED}, with the row's privileged_context in "
        "its prompt"
    ),
    source="Shenfeld et al. 2026, arXiv:2601.19897",
    summary="Learns on its own samples to say without being told what it says when it is told.",
    refused=(
        "estimate sampled with another alpha than 1: it estimates KL(student | teacher)",
        "top_k or tail without estimate top_k, or that without top_k",
        "a template without {prompt} or {privileged_context}",
    ),
)
SDPO = policy_objective(
    "sdpo",
    SDPOConfig,
    sdpo_tokens,
    needs=sdpo_needs,
    zero_advantage_is_zero_loss=lambda config: config.weight == 0,
    formula=(
        f"(1 - weight) GRPO + weight min(policy / sampler, is_clip) D, mean over rollouts of token means\n{DISTANCE}\n{WEIGHED}, with a "
        "successful rollout of the group, or feedback, in its prompt"
    ),
    source="Huebotter et al. 2026, arXiv:2601.20802",
    summary="Failed rollouts learn from what the policy would have said had it seen one that succeeded, or the feedback.",
    refused=(
        "estimate sampled with another alpha than 1: it estimates KL(student | teacher)",
        "top_k or tail without estimate top_k, or that without top_k",
        "solutions and feedback both false: the teacher would see what the student sees",
        "templates without the places that they are to fill",
    ),
)
