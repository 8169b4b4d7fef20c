"""What a policy that teaches itself reads in place of its prompt: the same question, and something that the student does not see.

The text is put together here; the policy's own chat template then writes it, and what was sampled is appended token by token as it was
(Shenfeld et al. 2026, arXiv:2601.19897; Huebotter et al. 2026, arXiv:2601.20802).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentrl.errors import EnvironmentFailure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Message = dict[str, Any]
Prompt = str | list[Message]

TEACHER = "teacher"
"""Name of the column with a teacher's log-probs of trained tokens; of several, their weighted mean."""
PRIVILEGED = "privileged_context"
"""The column of a row that only the teacher sees, as the field calls it."""

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_PLACE = re.compile(r"\{(prompt|privileged_context|solution|feedback)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPrompt:
    """How a rollout's teacher is prompted."""

    shows: Literal["row", "siblings"]
    """`row`: the row's `privileged_context`, which every row must have. `siblings`: a successful rollout of the same task, or feedback;
    a rollout for which there is neither is not taught."""
    template: str
    """With `{prompt}`, and `{privileged_context}` or `{solution}` and `{feedback}`: takes the place of the last user message's text."""
    solution: str = ""
    """With `{solution}`: how a successful attempt is shown."""
    feedback: str = ""
    """With `{feedback}`: how feedback is shown."""
    threshold: float = 1.0
    """Least score of a successful attempt."""
    uses_solutions: bool = True
    own_solution: bool = False
    """Whether a successful rollout may be shown its own attempt."""
    uses_feedback: bool = False
    """Feedback is the row's `privileged_context`, or else what the environment said after the rollout's last turn."""
    feedback_only_without_solution: bool = False
    hides_thoughts: bool = False
    """Cut `<think>...</think>` out of what is shown of an attempt."""
    max_tokens: int | None = None
    """A longer prompt is not given to the teacher, and the rollout is not taught; null gives any that the context holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A finished rollout, as its siblings may be shown it."""

    score: float | None
    """None where it could not be scored."""
    text: str
    """What the policy said."""
    feedback: str | None
    """What the environment said after its last turn."""


def shown_to(place: int, attempts: Sequence[Attempt], row: Mapping[str, Any], how: TeacherPrompt) -> dict[str, str] | None:
    """What fills the template for the rollout at `place` among its siblings; None where there is nothing to show.

    Raises `EnvironmentFailure` where the row lacks what it must have.
    """
    if how.shows == "row":
        return {PRIVILEGED: _privileged(row)}
    solution = next(
        (
            one.text
            for index, one in enumerate(attempts)
            if how.uses_solutions and one.score is not None and one.score >= how.threshold and (how.own_solution or index != place)
        ),
        None,
    )
    feedback = _feedback(attempts[place], row) if how.uses_feedback and not (how.feedback_only_without_solution and solution) else None
    if solution is None and feedback is None:
        return None
    if solution is not None and how.hides_thoughts:
        solution = _THOUGHT.sub("", solution).strip()
    return {
        "solution": "" if solution is None else filled(how.solution, {"solution": solution}),
        "feedback": "" if feedback is None else filled(how.feedback, {"feedback": feedback}),
    }


def composed(prompt: Prompt, shown: Mapping[str, str], template: str) -> Prompt:
    """The teacher's prompt: the student's, with the text of its last message, which must be the user's, put into the template.

    Raises `EnvironmentFailure` for a conversation that ends otherwise.
    """
    if isinstance(prompt, str):
        return filled(template, {"prompt": prompt, **shown})
    last = prompt[-1] if prompt else {}
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise EnvironmentFailure(
            "a teacher that sees more than the student is told so in the user's last message, and the prompt ends with "
            f"{str(last)[:80]!r}: let the environment's prompt end with a user message of plain text"
        )
    return [*prompt[:-1], {**last, "content": filled(template, {"prompt": last["content"], **shown})}]


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its places filled; braces in what is filled in, and around other names, stay as they are."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), template)


def top_names(teacher: str) -> tuple[str, str]:
    """Names of the columns with the ids and the log-probs of a teacher's likeliest tokens."""
    return f"teacher_ids:{teacher}", f"teacher_top:{teacher}"


def is_top(name: str) -> bool:
    """Whether a column is one of these, which the learner reads itself."""
    return name.startswith(("teacher_ids:", "teacher_top:"))


def missing_places(template: str, places: Sequence[str]) -> list[str]:
    """Those of the places that a template does not have."""
    return [place for place in places if f"{{{place}}}" not in template]


def _privileged(row: Mapping[str, Any]) -> str:
    given = row.get(PRIVILEGED)
    text = _text(given)
    if text is None or not text.strip():
        raise EnvironmentFailure(
            f"the row's `{PRIVILEGED}` is {str(given)[:60]!r}: the teacher of this objective is shown it, and every row must have a text, "
            "or messages, there"
        )
    return text


def _feedback(attempt: Attempt, row: Mapping[str, Any]) -> str | None:
    for text in (_text(row.get(PRIVILEGED)), attempt.feedback):
        if text is not None and text.strip():
            return text
    return None


def _text(given: Any) -> str | None:
    """A text, or the texts of messages, one a line; None for anything else."""
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
        texts = [one.get("content") for one in given]
        return "\n".join(one for one in texts if isinstance(one, str) and one)
    return None
