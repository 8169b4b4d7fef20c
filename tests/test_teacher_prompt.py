"""What a policy that teaches itself is shown."""

from __future__ import annotations

import dataclasses

import pytest

from agentrl.errors import EnvironmentFailure
from agentrl.teacher_prompt import Attempt, TeacherPrompt, composed, filled, missing_places, shown_to

ROW = TeacherPrompt(shows="row", template="{prompt}\n\n{privileged_context}")
SIBLINGS = TeacherPrompt(
    shows="siblings", template="{prompt}{solution}{feedback}\nGo.", solution="\nRight: {solution}\n", feedback="\nSaid: {feedback}\n"
)
ATTEMPTS = [
    Attempt(score=0.0, text="<think>a</think> no", feedback="wrong"),
    Attempt(score=1.0, text="<think>b</think> yes", feedback=None),
    Attempt(score=None, text="lost", feedback=" "),
]


def told(place: int, row: dict[str, object] | None = None, **options: object) -> str | None:
    how = dataclasses.replace(SIBLINGS, **options)  # type: ignore[arg-type]
    shown = shown_to(place, ATTEMPTS, row or {}, how)
    return None if shown is None else str(composed("Q", shown, how.template))


def test_a_row_shows_its_privileged_context() -> None:
    assert composed("Q", shown_to(0, [], {"privileged_context": "A"}, ROW) or {}, ROW.template) == "Q\n\nA"


def test_messages_are_shown_line_by_line() -> None:
    given = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert shown_to(0, [], {"privileged_context": given}, ROW) == {"privileged_context": "x\ny"}


@pytest.mark.parametrize("row", [{}, {"privileged_context": None}, {"privileged_context": "  "}, {"privileged_context": 3}])
def test_a_row_without_it_is_told_by_its_field(row: dict[str, object]) -> None:
    with pytest.raises(EnvironmentFailure, match="`privileged_context`"):
        shown_to(0, [], row, ROW)


def test_only_the_last_user_message_is_rewritten() -> None:
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q", "name": "n"}]
    got = composed(prompt, {"privileged_context": "A"}, ROW.template)
    assert got == [prompt[0], {"role": "user", "content": "Q\n\nA", "name": "n"}]
    assert prompt[1]["content"] == "Q"


def test_a_prompt_that_ends_with_another_role_is_refused() -> None:
    with pytest.raises(EnvironmentFailure, match="end with a user message"):
        composed([{"role": "assistant", "content": "x"}], {}, ROW.template)


def test_what_is_filled_in_is_never_read_as_a_template() -> None:
    assert filled("{prompt}|{solution}|{other}", {"prompt": "{solution}", "solution": "{0}"}) == "{solution}|{0}|{other}"
    assert missing_places("{prompt} {x}", ("prompt", "solution")) == ["solution"]


def test_a_failed_attempt_is_shown_a_successful_sibling() -> None:
    assert told(0) == "Q\nRight: <think>b</think> yes\n\nGo."
    assert told(0, hides_thoughts=True) == "Q\nRight: yes\n\nGo."
    assert told(0, threshold=2.0) is None
    assert told(0, uses_solutions=False) is None


def test_the_only_successful_attempt_is_shown_nothing_unless_its_own_counts() -> None:
    assert told(1) is None
    assert told(1, own_solution=True) == "Q\nRight: <think>b</think> yes\n\nGo."


def test_feedback_is_the_rows_or_else_the_environments() -> None:
    assert told(0, uses_feedback=True, uses_solutions=False) == "Q\nSaid: wrong\n\nGo."
    assert told(0, {"privileged_context": "row"}, uses_feedback=True) == "Q\nRight: <think>b</think> yes\n\nSaid: row\n\nGo."
    assert told(0, uses_feedback=True, feedback_only_without_solution=True) == "Q\nRight: <think>b</think> yes\n\nGo."
    assert told(2, uses_feedback=True, uses_solutions=False) is None, "a blank is no feedback"
