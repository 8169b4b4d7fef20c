"""What `agentrl grade tool-calls` says of a row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrl.errors import ConfigError
from agentrl.rollout.toolcall_rows import grade_rows

CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "cases" / "tool_calls.jsonl").read_text().splitlines()]
TOOLS = [{"name": "run", "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]}}]
GOOD = '<tool_call>{"name": "run", "arguments": {"cmd": "ls"}}</tool_call>'


def graded(**row):
    (one,) = grade_rows([{"tools": TOOLS, **row}])
    return one


def test_shared_cases_are_read_as_they_should():
    for case, told in zip(CASES, grade_rows(CASES), strict=True):
        assert told["calls"] == case["calls"]
        assert told["verdict"] == "correct"


def test_rows_without_right_calls():
    assert graded(text=GOOD) == {"calls": [{"name": "run", "arguments": {"cmd": "ls"}}], "verdict": "well-formed", "reason": ""}
    assert graded(text="hello")["verdict"] == "no calls"
    assert graded(text=GOOD, thinking=True)["verdict"] == "no calls"
    broken = graded(text=GOOD + '<tool_call>{"name": "run", "arguments": {}}</tool_call>')
    assert (broken["verdict"], broken["reason"]) == ("malformed", "error: invalid arguments: arguments lack 'cmd'; needed: cmd")
    assert graded(text='[TOOL_CALLS]run[ARGS]{"cmd": "ls"}', format="mistral-args")["calls"] == graded(text=GOOD)["calls"]


def test_rows_with_right_calls():
    right = [{"name": "run", "arguments": {"cmd": "ls"}}]
    assert graded(text=GOOD, calls=right)["verdict"] == "correct"
    assert graded(text=GOOD, calls=[])["reason"] == "0 calls are right, 1 were read"
    other = graded(text=GOOD, calls=[{"name": "run", "arguments": {"cmd": True}}])
    assert other["verdict"] == "wrong"
    assert other["reason"].startswith("call 0 was read as")
    assert graded(text=GOOD, calls="none")["verdict"] == "unscorable"


def test_schemas_that_are_none_are_no_verdict_about_the_call():
    told = graded(text=GOOD, tools=[{"name": "run", "parameters": {"type": "dict"}}])
    assert told["verdict"] == "unscorable"
    assert "the parameters of run are no JSON schema" in told["reason"]
    assert graded(text=GOOD, tools=[3])["verdict"] == "unscorable"


@pytest.mark.parametrize("row", [{"text": 3}, {"text": GOOD, "tools": {}}, {"text": GOOD, "format": "xml"}])
def test_rows_of_another_shape_are_refused(row):
    with pytest.raises(ConfigError, match=r"a row to read|may be hermes"):
        graded(**row)
