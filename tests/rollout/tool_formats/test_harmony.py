"""gpt-oss's channels: what is thought, what is said, and whom a call is addressed to."""

from __future__ import annotations

import pytest

from agentrl.rollout.tool_formats.harmony import HARMONY
from agentrl.rollout.toolcalls import Malformed, ToolCall, read_turn

TOOLS = [{"name": "look"}]
CALL = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"x": 1}'


def read(text, **more):
    return read_turn(text, TOOLS, tool_format=HARMONY, **more)


def test_an_answer_behind_its_reasoning():
    turn = read("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.")
    assert (turn.reasoning, turn.content, turn.calls) == ("Hm.", "Hello.", ())
    assert read("<|channel|>final<|message|>Hello.").content == "Hello."
    assert read("<|channel|>final<|message|>Hello.<|end|>").content == "Hello."


def test_a_call_behind_reasoning_and_a_preamble():
    preamble = "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    turn = read(f"<|channel|>analysis<|message|>Or {CALL}?<|end|>{preamble}<|start|>assistant{CALL}")
    assert turn.calls == (ToolCall(name="look", arguments={"x": 1}),)
    assert (turn.reasoning, turn.content) == (f"Or {CALL}?", "I look.")


@pytest.mark.parametrize(
    "header",
    [" to=functions.look<|channel|>commentary json", " to=functions.look<|channel|>analysis", "<|channel|>analysis to=functions.look code"],
)
def test_the_address_may_stand_on_either_side(header):
    assert read(f'{header}<|message|>{{"x": 1}}<|call|>').calls == (ToolCall(name="look", arguments={"x": 1}),)


def test_reasoning_that_is_never_closed_calls_nothing():
    assert read(f"<|channel|>analysis<|message|>maybe {CALL}").calls == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<|channel|>commentary to=python code<|message|>print(1)<|call|>", "unknown tool"),
        ("<|channel|>commentary to=functions.look json<|message|>{oops<|call|>", "invalid JSON"),
        ('<|channel|>commentary to=functions.look json<|message|>{"x": 1} {"x": 2}<|call|>', "invalid JSON"),
        ("<|channel|>commentary to=functions.look json<|message|>[1]<|call|>", "arguments are not an object"),
        ("<|channel|>commentary to=functions.<|message|>{}<|call|>", "unknown tool"),
    ],
)
def test_what_is_not_supported_or_broken_is_said(text, reason):
    (fault,) = read(text).calls
    assert isinstance(fault, Malformed)
    assert fault.reason == reason
