"""Ten thousand mutated calls and as many mutated turns, in every format: nothing is raised, and every answer can be sent."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agentrl import wire
from agentrl.records import Task
from agentrl.rollout.hosted import Blueprint, HostedEpisode
from agentrl.rollout.messages import CallTool, Observation, Open, Opened, Setup
from agentrl.rollout.tool_formats.known import FORMATS
from agentrl.rollout.toolcalls import Malformed, ToolCall, read_turn

ENV = Path(__file__).with_name("awkward_env.py")
COUNT = 10_000
CALLS = [
    ToolCall(name="fine", arguments={"x": 3, "label": "020", "tags": ["a", "b"]}),
    ToolCall(name="fine", arguments={"x": "3", "label": "{[\"'"}),
    ToolCall(name="where", arguments={"place": {"city": "Rome"}, "mode": "far", "scale": 1e3}),
    ToolCall(name="odd", arguments={"which": 7}),
    ToolCall(name="fails", arguments={"kind": 1}),
    ToolCall(name="waits", arguments={"text": "<think> </think>"}),
    ToolCall(name="waits_and_fails", arguments={}),
    ToolCall(name="search-web", arguments={"q": "rome", "n": None}),
]
PIECES = [
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "=",
    "\\",
    "\\ud800",
    "\ud800",
    "\x00",
    "\n",
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 30,
]
PIECES += [
    "null",
    "true",
    "None",
    "<think>",
    "</think>",
    "<",
    ">",
    "|",
    "[TOOL_CALLS]",
    "```",
    "; ",
    "\U0001f600",
    "[" * 3000,
    '{"a":' * 3000,
]
PIECES += [mark for tool_format in FORMATS.values() for mark in (*tool_format.thinking[0], tool_format.write([CALLS[0]])[:12])]


def mutated(draw, text, most):
    for _ in range(draw.randint(1, most)):
        at = draw.randint(0, len(text))
        match draw.randrange(4):
            case 0:
                text = text[:at] + draw.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + draw.choice([1, 1, 3, 10, 40]) :]
            case 2:
                text = text[:at] + text[draw.randint(0, at) : at] + text[at:]
            case 3:
                text = text[:at] + chr(draw.choice([0, 34, 92, 123, 125, 0xD800, draw.randrange(0x10FFFF)])) + text[at + 1 :]
    return text


def a_call(draw, tool_format):
    return tool_format.write([draw.choice(CALLS)])


def a_turn(draw, tool_format):
    think, end_think = draw.choice(tool_format.thinking)
    parts = [f"{think}maybe {a_call(draw, tool_format)}{end_think}" if draw.random() < 0.5 else "", draw.choice(["", "Let me see.\n"])]
    return "".join([*parts, tool_format.write(draw.sample(CALLS, draw.randint(1, 3))), draw.choice(["", "\nDone."])])


@pytest.fixture(scope="module")
def episode():
    hosted = HostedEpisode(Blueprint.load(Setup(imports=[], spec=f"{ENV}:Awkward", max_output_chars=1000)))
    yield hosted
    hosted.close()


@pytest.mark.parametrize(("write", "most"), [(a_call, 2), (a_turn, 6)], ids=["calls", "completions"])
def test_nothing_leaves_the_boundary(episode, write, most):
    draw = random.Random(0)
    opened = episode.answer(Open(call=1, session=1, task=Task.from_row("awkward", {"prompt": "go"})))
    assert isinstance(opened, Opened)
    called = malformed = errors = 0
    formats = list(FORMATS.values())
    for number in range(COUNT):
        tool_format = formats[number % len(formats)]
        text = mutated(draw, write(draw, tool_format), most)
        turn = read_turn(text, opened.tools, thinking=draw.random() < 0.1, tool_format=tool_format)
        for call in turn.calls:
            if isinstance(call, Malformed):
                malformed += 1
                assert call.message.encode()
                continue
            called += 1
            request = CallTool(call=number, session=1, name=call.name, arguments=call.arguments)
            assert wire.pack(request)
            answer = episode.answer(request)
            assert isinstance(answer, Observation), (text, answer)
            assert wire.pack(answer)
            assert len(answer.text) < 1100
            errors += answer.error
    # the mutants reach all three: calls that are made, tools that fail, and calls that cannot be made
    assert min(called, malformed) > COUNT // 20
    assert errors > COUNT // 100
