"""Function calls against known answers: three outcomes, exact types, any order."""

from __future__ import annotations

import pytest

from agentrl.rewards.function_calls import function_call_reward, grade_calls

EXACT = [{"name": "f", "arguments": {"x": 1, "o": {"deep": [1, 2]}}}]
ALLOWED = [{"f": {"x": [1, 2], "unit": ["cm", ""]}}]


def verdict(calls, answers, **more):
    return grade_calls(calls=calls, answers=answers, **more).verdict


@pytest.mark.parametrize(
    ("calls", "answers", "expected"),
    [
        ([("f", {"x": 1, "o": {"deep": [1, 2]}})], EXACT, "correct"),
        ([("f", {"x": 1, "o": {"deep": [2, 1]}})], EXACT, "wrong"),
        ([("f", {"x": 1, "o": {}})], EXACT, "wrong"),
        ([("f", {"x": 1})], EXACT, "wrong"),
        ([("g", {"x": 1, "o": {"deep": [1, 2]}})], EXACT, "wrong"),
        ([], EXACT, "wrong"),
        ([], [], "correct"),
        ([("f", {})], [], "wrong"),
        ([("f", {"x": 2})], ALLOWED, "correct"),
        ([("f", {"x": 2, "unit": "cm"})], ALLOWED, "correct"),
        ([("f", {"x": 3})], ALLOWED, "wrong"),
        ([("f", {"unit": "cm"})], ALLOWED, "wrong"),
        ([("f", {"x": 1, "more": 1})], ALLOWED, "wrong"),
        ([("f", {"x": 1, "unit": None})], ALLOWED, "wrong"),
        ([("f", {"x": 1}), ("f", {"x": 1})], ALLOWED, "wrong"),
    ],
)
def test_which_calls_are_right(calls, answers, expected):
    assert verdict(calls, answers) == expected


@pytest.mark.parametrize(
    ("value", "known", "right"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1.0, 1, False),
        (True, 1, False),
        (1, True, False),
        (False, False, True),
        ("1", 1, False),
        (None, None, True),
        (0, None, False),
        ("a", "A", False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 2, 3], False),
        ([], [], True),
        ({"k": 1}, {"k": 1}, True),
        ({"k": True}, {"k": 1}, False),
        ({"k": 1, "l": 2}, {"k": 1}, False),
    ],
)
def test_types_are_exact(value, known, right):
    assert verdict([("f", {"x": value})], [{"name": "f", "arguments": {"x": known}}]) == ("correct" if right else "wrong")


def test_objects_among_allowed_values_hold_allowed_values():
    answers = [{"f": {"where": [{"city": ["Rome", "Roma"], "zip": [20, ""]}]}}]
    assert verdict([("f", {"where": {"city": "Roma"}})], answers) == "correct"
    assert verdict([("f", {"where": {"city": "Rome", "zip": 20}})], answers) == "correct"
    assert verdict([("f", {"where": {"city": "Rome", "zip": 21}})], answers) == "wrong"
    assert verdict([("f", {"where": {"zip": 20}})], answers) == "wrong"
    listed = [{"f": {"parts": [[{"n": [1, 2]}, {"n": [3]}]]}}]
    assert verdict([("f", {"parts": [{"n": 2}, {"n": 3}]})], listed) == "correct"
    assert verdict([("f", {"parts": [{"n": 3}, {"n": 2}]})], listed) == "wrong"


def test_calls_may_come_in_any_order_and_each_answers_for_one():
    answers = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}, {"g": {}}]
    made = [("g", {}), ("f", {"x": 1}), ("f", {"x": 2})]  # the first f must leave [1] to nobody else
    assert verdict(made, answers) == "correct"
    assert verdict(made, answers, ordered=True) == "wrong"
    assert verdict([("f", {"x": 2}), ("f", {"x": 1}), ("g", {})], answers, ordered=True) == "correct"
    assert verdict([("f", {"x": 2}), ("f", {"x": 2}), ("g", {})], answers) == "wrong"


def test_loose_spelling_is_asked_for():
    calls, answers = [("f", {"day": "april 1 2024"})], [{"f": {"day": ["April 1, 2024"]}}]
    assert verdict(calls, answers) == "wrong"
    assert verdict(calls, answers, spelling="loose") == "correct"
    assert verdict([("f", {"day": "april 2 2024"})], answers, spelling="loose") == "wrong"


@pytest.mark.parametrize(
    "answers", [None, "f()", [3], [{}], [{"f": {"x": 1}}], [{"f": {"x": []}}], [{"f": [], "g": []}], [{"name": "f", "arguments": "x"}]]
)
def test_answers_in_no_known_form_are_unscorable(answers):
    grade = grade_calls(calls=[("f", {"x": 1})], answers=answers)
    assert grade.verdict == "unscorable"
    assert "got" in grade.reason
    assert grade.score().value is None


def test_reasons_name_the_argument():
    grade = grade_calls(calls=[("f", {"x": 3})], answers=ALLOWED)
    assert grade.reason == "f: x is 3; allowed: 1, 2"
    assert grade_calls(calls=[("h", {})], answers=ALLOWED).reason == "no answer is left for a call of h; known: f"
    assert grade_calls(calls=[], answers=ALLOWED).reason == "1 calls were expected, got 0"


def test_as_a_reward_function():
    def said(arguments):
        return [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}]}
        ]

    completions = [said({"x": 1}), said('{"x": 1}'), said('{"x": 3}'), said("{"), said("5"), "f(1)", said({"x": 1})]
    answers = [ALLOWED] * 6 + [None]
    values = function_call_reward(prompts=[""] * 7, completions=completions, completion_ids=[[]] * 7, answers=answers)
    assert values == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None]
