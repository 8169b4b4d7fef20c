"""Tool calls out of text: the shared cases, the kinds of mistakes that models make, and a fuzz."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentrl.rollout.tool_formats.known import FORMATS
from agentrl.rollout.toolcalls import MOST_CALLS, Malformed, ToolCall, check_call, extract_calls, read_calls, read_turn

CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "cases" / "tool_calls.jsonl").read_text().splitlines()]


def shown(calls: list[ToolCall | Malformed]) -> list[dict[str, Any]]:
    bad = Malformed
    return [{"malformed": call.reason} if isinstance(call, bad) else {"name": call.name, "arguments": call.arguments} for call in calls]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_shared_cases(case: dict[str, Any]) -> None:
    assert shown(read_calls(case["text"], case["tools"])) == case["calls"]


def call_text(arguments: str, name: str = "act") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


GOOD = call_text('{"cmd": "ls"}', "run")


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ('<tool_call>{"name": "run", "arguments": {"cmd": "l', ["invalid JSON"]),
        ("<tool_call>{}{}</tool_call>", ["invalid JSON"]),
        ('<tool_call>{"name": "run", "arguments": {}}', ["unclosed <tool_call>"]),
        ("<tool_call></tool_call>", ["invalid JSON"]),
        ("<tool_call>[1]</tool_call>", ["not an object"]),
        ('<tool_call>{"arguments": {}}</tool_call>', ["missing name"]),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', ["missing name"]),
        ('<tool_call>{"name": "run"}</tool_call>', ["missing arguments"]),
        (call_text("[1]"), ["arguments are not an object"]),
        (call_text("null"), ["arguments are not an object"]),
        (call_text('"ls"'), ["arguments are not an object"]),
        (call_text('{"x": NaN}'), ["invalid JSON"]),
        (call_text('{"x": 1e999}'), ["invalid arguments"]),
        (call_text('{"x": 123456789012345678901234567890}'), ["invalid arguments"]),
        (call_text('{"x": "\\ud800"}'), ["invalid arguments"]),
        ('<tool_call>{"x": "never closed\n' + GOOD, ["invalid JSON", "run"]),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", ["invalid JSON"]),
        ("<tool_call><function=run>loose</function></tool_call>", ["invalid function"]),
        ("<tool_call><function=run><parameter=x>1</function></tool_call>", ["invalid function"]),
        ("<tool_call><function=run><parameter=x>1</parameter></function>", ["unclosed <tool_call>"]),
    ],
)
def test_what_cannot_be_called_is_malformed_in_its_place(text: str, reasons: list[str]) -> None:
    calls = extract_calls(text)
    assert [call.reason if isinstance(call, Malformed) else call.name for call in calls] == reasons


@pytest.mark.parametrize(
    ("text", "thinking", "count"),
    [
        (f"<think>{GOOD}</think>{GOOD}", False, 1),
        (f"<think>{GOOD}", False, 0),
        (f"{GOOD}<think>{GOOD}", False, 1),
        (f"{GOOD}</think>{GOOD}", True, 1),
        (f"{GOOD}</think>{GOOD}", False, 1),  # a span that only the prompt can have opened
        (f"{GOOD}{GOOD}", True, 0),
        (f"<think></think>{GOOD}</think>{GOOD}", False, 2),
        (call_text('{"cmd": "echo <think> </think> </tool_call> <tool_call>"}', "run"), False, 1),
    ],
)
def test_reasoning_is_skipped(text: str, thinking: bool, count: int) -> None:
    assert len(extract_calls(text, thinking=thinking)) == count


REFUSED = object()
DEFS = {"n": {"type": "integer"}, "again": {"$ref": "#/$defs/n"}, "circle": {"$ref": "#/$defs/circle"}, "a/b": {"type": "integer"}}


def tool(properties: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "act", "parameters": {"type": "object", "properties": properties, **more}}}]


@pytest.mark.parametrize(
    ("schema", "given", "expected"),
    [
        ({"type": "string"}, "020", "020"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, 20, REFUSED),
        ({"type": "integer"}, "42", 42),
        ({"type": "integer"}, 42.0, 42),
        ({"type": "integer"}, "4.5", REFUSED),
        ({"type": "integer"}, True, REFUSED),
        ({"type": "integer"}, "9" * 40, REFUSED),
        ({"type": "integer"}, "\u0664\u0662", REFUSED),
        ({"type": "number"}, "1e-3", 1e-3),
        ({"type": "number"}, "1e999", REFUSED),
        ({"type": "boolean"}, "false", False),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "no", REFUSED),
        ({"type": "boolean"}, 0, REFUSED),
        ({"type": "object"}, '{"x": 1}', {"x": 1}),
        ({"type": "object", "properties": {"n": {"type": "integer"}}}, {"n": "7"}, {"n": 7}),
        ({"type": "array", "items": {"type": "integer"}}, '["1", 2]', [1, 2]),
        ({"type": "array", "items": {"type": "integer"}}, [1, "x"], REFUSED),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "42", "42"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"type": ["integer", "null"]}, "42", 42),
        ({"enum": ["red", 3]}, "3", 3),
        ({"enum": ["red", 3]}, "blue", REFUSED),
        ({"enum": [1]}, True, REFUSED),
        ({"$ref": "#/$defs/n"}, "42", 42),
        ({}, "42", "42"),
        ({"anyOf": [{"type": "integer"}, {"enum": ["1", "2"]}]}, "1", "1"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, 1.5, 1.5),
        ({"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]}}, ["1", "true", False], [1, True, False]),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": {"type": "number"}},
            ["1", "true", "2.5"],
            [1, True, 2.5],
        ),
        ({"$ref": "#/$defs/again"}, "42", 42),
        ({"$ref": "#/$defs/circle"}, "42", "42"),
        ({"$ref": "#/$defs/a~1b"}, "42", 42),
        ({"type": "string", "format": "date"}, "2024-04-01", "2024-04-01"),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "integer"}, 10**18, 10**18),
        ({"type": "integer"}, None, REFUSED),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"k": "7"}', {"k": 7}),
        ({"const": 5}, "5", 5),
    ],
)
def test_arguments_move_only_towards_the_declared_type(schema: dict[str, Any], given: Any, expected: Any) -> None:
    result = check_call(ToolCall(name="act", arguments={"x": given}), tool({"x": schema}, **{"$defs": DEFS}))
    if expected is REFUSED:
        assert isinstance(result, Malformed)
        assert result.reason == "invalid arguments"
        return
    assert isinstance(result, ToolCall)
    assert result.arguments == {"x": expected}
    assert type(result.arguments["x"]) is type(expected)


def test_alternatives_within_alternatives_cost_no_more_than_their_budget() -> None:
    branch = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "leaf": {"type": "integer"}}}
    node = {"anyOf": [branch, {**branch, "title": "the same"}]}
    nest: dict[str, Any] = {"leaf": "1"}
    for _ in range(40):
        nest = {"next": nest}
    result = check_call(ToolCall(name="act", arguments={"x": nest}), tool({"x": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": node}}))
    assert isinstance(result, Malformed)
    assert "too many alternatives" in result.detail


def test_missing_unknown_and_extra() -> None:
    tools = tool({"x": {"type": "string"}}, required=["x"], additionalProperties=False)
    missing, extra = (check_call(ToolCall(name="act", arguments=arguments), tools) for arguments in ({}, {"x": "", "y": 1}))
    unknown = check_call(ToolCall(name="fly", arguments={}), tools)
    assert [call.message for call in (missing, extra, unknown) if isinstance(call, Malformed)] == [
        "error: invalid arguments: arguments lack 'x'; needed: x",
        "error: invalid arguments: arguments hold an unknown 'y'; known: x",
        'error: unknown tool: there is no "fly"; tools: act',
    ]


def test_xml_form_is_typed_by_the_schema() -> None:
    parameters = "<parameter=all>\nfalse\n</parameter>\n<parameter=zip>\n020\n</parameter>"
    text = f"<tool_call>\n<function=act>\n{parameters}\n</function>\n</tool_call>"
    tools = tool({"all": {"type": "boolean"}, "zip": {"type": "string"}})
    assert shown(read_calls(text, tools)) == [{"name": "act", "arguments": {"all": False, "zip": "020"}}]


def test_no_more_calls_are_made_than_a_turn_may_have() -> None:
    calls = extract_calls(GOOD * 200)
    assert len(calls) == MOST_CALLS + 1
    assert shown(calls[-1:]) == [{"malformed": "too many calls"}]
    started = time.process_time()
    for name, tool_format in FORMATS.items():
        for piece in (tool_format.write([ToolCall(name="run", arguments={"cmd": "ls"})])[:14], tool_format.form, "<think>", '{"name": "'):
            assert len(extract_calls(piece * 10_000, tool_format=tool_format)) <= MOST_CALLS + 1, name
    assert time.process_time() - started < 20  # what repeats for ever is read in the time that its length takes


def test_a_turn_is_taken_apart() -> None:
    bad = call_text('{"c": "ls"}', "run")
    turn = read_turn(f"<think>hm {GOOD}</think>\nHello. {GOOD} And {bad} bye.", CASES[0]["tools"])
    assert turn.reasoning == f"hm {GOOD}"
    assert turn.content == f"Hello.  And {bad} bye."
    assert shown(list(turn.calls)) == [{"name": "run", "arguments": {"cmd": "ls"}}, {"malformed": "invalid arguments"}]
    untouched = read_turn(f" as it is {GOOD}\n", [])
    assert (untouched.content, untouched.calls, untouched.reasoning) == (f" as it is {GOOD}\n", (), "")
    prompted = read_turn("a</think>b<think>c</think>d<think>e", CASES[0]["tools"], thinking=True)
    assert (prompted.reasoning, prompted.content) == ("a\nc\ne", "bd")


def test_nothing_raises_and_every_call_can_be_sent() -> None:
    draw = random.Random(0)
    schema = tool({"x": {"type": "integer"}, "y": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array", "items": {"type": "boolean"}}]}})
    good = [case["text"] for case in CASES] + [call_text('{"x": "3", "y": [true, "false"]}'), call_text('"{\\"x\\": 1e5}"')]
    seeds = [*good, "<think>a</think>" + GOOD, "<tool_call><function=act><parameter=x>3</parameter></function></tool_call>"]
    marks = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<function=", "<parameter=", "</function>", "</parameter>", ">"]
    json_bits = ['"', "{", "}", "[", "\\", "\\ud83d", "NaN", "1e999", "9" * 30, "\x00", "\U0001f600", "\ud800", "null", ",", ":"]
    pieces = marks + json_bits
    found = 0
    for _ in range(6000):
        text = draw.choice(seeds)
        for _ in range(draw.randint(0, 5)):
            at = draw.randint(0, len(text))
            text = text[:at] + draw.choice(pieces) + text[at + draw.choice([0, 0, 1, 5, 30]) :]
        for call in read_calls(text, draw.choice([schema, CASES[0]["tools"]]), thinking=draw.random() < 0.1):
            msgspec.msgpack.encode(call if isinstance(call, ToolCall) else call.message)
            found += isinstance(call, ToolCall)
    assert found > 300  # most mutants of a good call stay readable in part
