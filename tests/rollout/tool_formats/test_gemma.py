"""Gemma's calls, whose strings stand between marks of their own."""

from __future__ import annotations

import pytest

from agentrl.rollout.tool_formats.gemma import FUNCTION_GEMMA, GEMMA
from agentrl.rollout.toolcalls import Malformed, ToolCall, extract_calls

STOP = ToolCall(name="stop", arguments={})


def told(text, tool_format):
    return [call.reason if isinstance(call, Malformed) else call for call in extract_calls(text, tool_format=tool_format)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|tool_call>call:stop{}<tool_call|>", [STOP]),
        ('<|tool_call>call:run{q:<|"|>a<tool_call|>{b<|"|>}<tool_call|>', [ToolCall(name="run", arguments={"q": "a<tool_call|>{b"})]),
        ("<|tool_call>call:run{o:{x:[1,null]}}<tool_call|>", [ToolCall(name="run", arguments={"o": {"x": [1, None]}})]),
        ('<|tool_call>call:run{q:"a"}<tool_call|>', ["invalid call"]),
        ("<|tool_call>stop{}<tool_call|><|tool_call>call:stop{}<tool_call|>", ["invalid call", STOP]),
        ("<|tool_call>call:stop{}", ["unclosed <|tool_call>"]),
        ("<|tool_call>call:stop{}<|tool_call>call:stop{}<tool_call|>", ["unclosed <|tool_call>", STOP]),
        ("<|channel>thought\n<|tool_call>call:stop{}<tool_call|><channel|>", []),
    ],
)
def test_gemma(text, expected):
    assert told(text, GEMMA) == expected


def test_function_gemma():
    text = "<start_function_call>call:run{q:<escape>London<escape>,n:2}<end_function_call>"
    assert told(text, FUNCTION_GEMMA) == [ToolCall(name="run", arguments={"q": "London", "n": 2})]
