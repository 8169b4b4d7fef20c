"""Calls in JSON lists, and Llama's whole answers."""

from __future__ import annotations

import pytest

from agentrl.rollout.tool_formats.lists import COHERE, FUNCTOOLS, LLAMA, PHI
from agentrl.rollout.toolcalls import Malformed, ToolCall, extract_calls, read_turn

STOP = ToolCall(name="stop", arguments={})


def told(text, tool_format):
    return [call.reason if isinstance(call, Malformed) else call for call in extract_calls(text, tool_format=tool_format)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "stop", "parameters": {}}', [STOP]),
        ('<|python_tag|>{"name": "stop", "parameters": {}}', [STOP]),
        ('{"type": "function", "name": "stop", "parameters": {}}', [STOP]),
        ('{"name": "stop", "parameters": {}} ; {"name": "stop", "parameters": "{}"}', [STOP, STOP]),
        ('{"name": "stop", "arguments": {}}', ["missing parameters"]),
        ('{"name": "stop", "parameters": {}} and so on', ["invalid JSON"]),
        ('{"name": "stop", "parameters": {', ["invalid JSON"]),
        ("<|python_tag|>print(1)", ["invalid JSON"]),
        ('{"answer": 3}', []),
        ('I would write {"name": "stop", "parameters": {}}', []),
    ],
)
def test_llama(text, expected):
    assert told(text, LLAMA) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<|tool_call|>[{"name": "stop", "arguments": {}}]<|/tool_call|>', [STOP]),
        ('<|tool_call|>[{"name": "stop", "arguments": {}}]', ["unclosed <|tool_call|>"]),
        ('<|tool_call|>{"name": "stop", "arguments": {}}<|/tool_call|>', ["invalid JSON"]),
        ('<|tool_call|>[{"name": "stop", "arguments": {}} 3]<|/tool_call|>', ["invalid JSON"]),
        ('<|tool_call|>[3, {"name": "stop", "arguments": {}}]<|/tool_call|>', ["not an object", STOP]),
    ],
)
def test_a_list_is_one_document(text, expected):
    assert told(text, PHI) == expected


def test_a_word_is_a_marker_only_before_a_list():
    assert told('functools [{"name": "stop", "arguments": {}}]', FUNCTOOLS) == [STOP]
    assert told("import functools", FUNCTOOLS) == []


def test_what_surrounds_an_answer_of_cohere_is_no_text():
    turn = read_turn("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Hello.<|END_RESPONSE|>", [{"name": "stop"}], tool_format=COHERE)
    assert (turn.reasoning, turn.content) == ("hm", "Hello.")
