"""Every family's form: what is written is read back, what is broken says how it is written, and reasoning is never run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.rollout.tool_formats.known import FORMATS
from agentrl.rollout.toolcalls import Malformed, ToolCall, read_turn

BAR, GAP = "\uff5c", "\u2581"
TAGGED = {"qwen-coder", "glm", "seed", "minimax", "deepseek-v3.2"}
"""Their strings cannot hold their own closing tags."""
MARKS_OF_TAGGED = ("</parameter>", "</function>", "</invoke>", "</arg_value>", "</tool_call>", f"</{BAR}DSML{BAR}parameter>")
MARKERLESS = {"llama", "pythonic"}
NASTY = [
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    "\\",
    "\n",
    "\\n",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "```",
    ";",
    ", ",
    "null",
    "020",
    "=",
    "):",
]

keys = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
texts = st.lists(st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=6).map("".join)
scalars = st.one_of(texts, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6)
calls_of_a_turn = st.lists(
    st.builds(
        ToolCall, name=st.sampled_from(["look", "get_weather", "math.factorial", "a1"]), arguments=st.dictionaries(keys, values, max_size=3)
    ),
    min_size=1,
    max_size=3,
)
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array", dict: "object"}


def tools_for(calls):
    """A tool a call, its parameters of the types of the arguments; calls of one name must then agree, so the names are numbered."""
    return [
        {
            "name": call.name,
            "parameters": {"type": "object", "properties": {key: {"type": KINDS[type(value)]} for key, value in call.arguments.items()}},
        }
        for call in calls
    ]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=50, deadline=None)
@given(calls=calls_of_a_turn)
def test_what_is_written_is_read_back(name, calls):
    tool_format = FORMATS[name]
    calls = [ToolCall(name=f"{call.name}{at}", arguments=call.arguments) for at, call in enumerate(calls)]
    if name in TAGGED:
        calls = [ToolCall(name=call.name, arguments=json.loads(untagged(json.dumps(call.arguments)))) for call in calls]
    turn = read_turn(tool_format.write(calls), tools_for(calls), tool_format=tool_format)
    assert list(turn.calls) == calls
    assert turn.content == turn.reasoning == ""


def untagged(text):
    for mark in MARKS_OF_TAGGED:
        text = text.replace(mark, "")
    return text


CALL = ToolCall(name="look", arguments={"city": "Rome", "days": 3})
OTHER = ToolCall(name="stop", arguments={})
TOOLS = [
    {"name": "look", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}},
    {"name": "stop"},
]


@pytest.mark.parametrize("name", FORMATS.keys() - MARKERLESS)
def test_text_around_calls_is_content(name):
    tool_format = FORMATS[name]
    turn = read_turn(f"Let me see.\n{tool_format.write([CALL, OTHER])}", TOOLS, tool_format=tool_format)
    assert (turn.content, list(turn.calls)) == ("Let me see.", [CALL, OTHER])


@pytest.mark.parametrize("name", MARKERLESS)
def test_calls_without_a_marker_must_come_first(name):
    tool_format = FORMATS[name]
    written = tool_format.write([CALL, OTHER])
    assert read_turn(f"I would say {written}", TOOLS, tool_format=tool_format).calls == ()
    assert list(read_turn(f"<think>hm {written}</think>\n {written}", TOOLS, tool_format=tool_format).calls) == [CALL, OTHER]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("missing", [5, 20])
def test_a_call_that_was_cut_off_stays_in_the_text_and_says_how_it_is_written(name, missing):
    tool_format = FORMATS[name]
    written = tool_format.write([CALL])
    cut = written[:-missing]
    turn = read_turn(cut, TOOLS, tool_format=tool_format)
    (fault,) = turn.calls
    assert isinstance(fault, Malformed)
    assert fault.message.endswith(f"write {tool_format.form}")
    assert turn.content == cut.strip()


@pytest.mark.parametrize("name", FORMATS)
def test_what_does_not_fit_the_schema_stays_in_the_text(name):
    tool_format = FORMATS[name]
    wrong = ToolCall(name="look", arguments={"days": "many"})
    turn = read_turn(tool_format.write([wrong]), TOOLS, tool_format=tool_format)
    (fault,) = turn.calls
    assert isinstance(fault, Malformed)
    assert fault.message == 'error: invalid arguments: days must be an integer, got "many"'
    assert "many" in turn.content


@pytest.mark.parametrize("name", FORMATS)
def test_reasoning_is_never_run(name):
    tool_format = FORMATS[name]
    written = tool_format.write([CALL])
    for opening, closing in tool_format.thinking:
        closed = read_turn(f"{opening}maybe {written}{closing}\n{tool_format.write([OTHER])}", TOOLS, tool_format=tool_format)
        assert list(closed.calls) == [OTHER]
        assert closed.reasoning == f"maybe {written}"
        assert read_turn(f"{opening}maybe {written}", TOOLS, tool_format=tool_format).calls == ()
        prompted = read_turn(f"maybe {written}{closing}{tool_format.write([OTHER])}", TOOLS, tool_format=tool_format, thinking=True)
        assert list(prompted.calls) == [OTHER]
        assert read_turn(f"maybe {written}", TOOLS, tool_format=tool_format, thinking=True).calls == ()


BEGIN, END = f"<{BAR}tool{GAP}calls{GAP}begin{BAR}>", f"<{BAR}tool{GAP}calls{GAP}end{BAR}>"
ONE, TWO, SEP = (f"<{BAR}tool{GAP}{mark}{BAR}>" for mark in (f"call{GAP}begin", f"call{GAP}end", "sep"))
PUBLISHED = {
    "hermes": (
        '<tool_call>\n{"name": "look", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    ),
    "qwen-coder": (
        "<tool_call>\n<function=look>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=stop>\n</function>\n</tool_call>"
    ),
    "glm": (
        "<tool_call>look\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
        "\n<tool_call>stop</tool_call>"
    ),
    "seed": (
        "<seed:tool_call>\n<function=look>\n<parameter=city>Rome</parameter>\n<parameter=days>3</parameter>\n</function>\n"
        "</seed:tool_call>\n<seed:tool_call>\n<function=stop>\n</function>\n</seed:tool_call>"
    ),
    "minimax": (
        '<minimax:tool_call>\n<invoke name="look">\n<parameter name="city">Rome</parameter>\n<parameter name="days">3</parameter>\n'
        '</invoke>\n<invoke name="stop">\n</invoke>\n</minimax:tool_call>'
    ),
    "mistral": (
        '[TOOL_CALLS] [{"name": "look", "arguments": {"city": "Rome", "days": 3}, "id": "abcdefghi"}, '
        '{"name": "stop", "arguments": {}, "id": "abcdefghj"}]'
    ),
    "mistral-args": '[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{"city": "Rome", "days": 3}[TOOL_CALLS]stop[ARGS]{}',
    "deepseek-v3": (
        f'{BEGIN}{ONE}function{SEP}look\n```json\n{{"city": "Rome", "days": 3}}\n```{TWO}\n'
        f"{ONE}function{SEP}stop\n```json\n{{}}\n```{TWO}{END}"
    ),
    "deepseek-v3.1": f'{BEGIN}{ONE}look{SEP}{{"city": "Rome", "days": 3}}{TWO}{ONE}stop{SEP}{{}}{TWO}{END}',
    "deepseek-v3.2": (
        f'<{BAR}DSML{BAR}function_calls>\n<{BAR}DSML{BAR}invoke name="look">\n<{BAR}DSML{BAR}parameter name="city" string="true">Rome'
        f'</{BAR}DSML{BAR}parameter>\n<{BAR}DSML{BAR}parameter name="days" string="false">3</{BAR}DSML{BAR}parameter>\n'
        f"</{BAR}DSML{BAR}invoke>\n"
        f'<{BAR}DSML{BAR}invoke name="stop">\n\n</{BAR}DSML{BAR}invoke>\n</{BAR}DSML{BAR}function_calls>'
    ),
    "kimi": (
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{"city": "Rome", "days": 3}'
        "<|tool_call_end|>"
        "<|tool_call_begin|>functions.stop:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "granite": '<|tool_call|>[{"name": "look", "arguments": {"city": "Rome", "days": 3}}, {"name": "stop", "arguments": {}}]',
    "phi": '<|tool_call|>[{"name": "look", "arguments": {"city": "Rome", "days": 3}}, {"name": "stop", "arguments": {}}]<|/tool_call|>',
    "functools": 'functools[{"name": "look", "arguments": {"city": "Rome", "days": 3}}, {"name": "stop", "arguments": {}}]',
    "nemotron": '<TOOLCALL>[{"name": "look", "arguments": {"city": "Rome", "days": 3}}, {"name": "stop", "arguments": {}}]</TOOLCALL>',
    "cohere": (
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "look", "parameters": {"city": "Rome", "days": 3}},\n'
        '    {"tool_call_id": "1", "tool_name": "stop", "parameters": {}}\n]<|END_ACTION|>'
    ),
    "lfm": "<|tool_call_start|>[look(city='Rome', days=3), stop()]<|tool_call_end|>",
    "gemma": '<|tool_call>call:look{city:<|"|>Rome<|"|>,days:3}<tool_call|><|tool_call>call:stop{}<tool_call|>',
    "functiongemma": (
        "<start_function_call>call:look{city:<escape>Rome<escape>,days:3}<end_function_call><start_function_call>call:stop{}<end_function_call>"
    ),
    "harmony": (
        '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"city": "Rome", "days": 3}<|call|>'
        "<|start|>assistant to=functions.stop<|channel|>commentary json<|message|>{}<|call|>"
    ),
    "llama": '{"name": "look", "parameters": {"city": "Rome", "days": 3}}; {"name": "stop", "parameters": {}}',
    "pythonic": '[look(city="Rome", days=3), stop()]',
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_published_form_is_read(name):
    turn = read_turn(PUBLISHED[name], TOOLS, tool_format=FORMATS[name])
    assert list(turn.calls) == [CALL, OTHER]
    assert turn.content == ""
