"""What teachers say of the trained tokens of a micro-batch, and the divergence that is made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from agentrl.learner.divergence import divergence
from agentrl.learner.foreign import Foreign, held_against
from agentrl.learner.projection import Projection
from agentrl.learner.top_tokens import TopTokens, chosen_logprobs, top_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one teacher says of some of the positions."""

    teacher: Projection | TopTokens | Foreign
    places: torch.Tensor | None
    """[asked] int64: which positions these are; None is all."""
    weights: torch.Tensor
    """[asked] the teacher's share in each one's divergence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What all teachers say of the trained tokens of a micro-batch, and what is made of it."""

    lessons: Sequence[Lesson]
    beta: float
    temperature: float
    """Of the student's distribution."""
    top_k: int | None = None
    """Compare the student's k most likely tokens, of which the teachers then say how likely they find them."""
    tail: bool = True
    """Of comparisons of some tokens: whether all others are one bucket, or both sides are renormalized without them."""


def taught(student: Projection, given: Lessons) -> torch.Tensor:
    """[positions] the sum of several teachers' divergences, each times its weight; 0 where no teacher speaks."""
    whole = replace(student, head=replace(student.head, temperature=given.temperature))
    total = whole.hidden.new_zeros(len(whole.hidden), dtype=torch.promote_types(whole.hidden.dtype, torch.float32))
    for lesson in given.lessons:
        if lesson.places is None:
            total = total + lesson.weights * _held_against(whole, lesson.teacher, given)
        else:
            own = replace(whole, hidden=whole.hidden.index_select(0, lesson.places))
            total = total.index_add(0, lesson.places, lesson.weights * _held_against(own, lesson.teacher, given))
    return total


def _held_against(student: Projection, teacher: Projection | TopTokens | Foreign, given: Lessons) -> torch.Tensor:
    if isinstance(teacher, Foreign):
        return held_against(student, teacher)
    if given.top_k is not None and isinstance(teacher, Projection):
        with torch.no_grad():
            ids = top_tokens(student, given.top_k).ids
            teacher = TopTokens(ids=ids, logprobs=chosen_logprobs(teacher, ids))
    return divergence(student, teacher, beta=given.beta, tail=given.tail)
