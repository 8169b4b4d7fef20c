"""Literals in the middle of a text: Python's, JSON's constants, Gemma's strings; whatever is none is refused in time."""

from __future__ import annotations

import time

import pytest

from agentrl.rollout.tool_formats.literals import Literals

PYTHON = Literals()
GEMMA = Literals(quotes=('<|"|>',), escapes=False, bare_keys=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        ("+2", 2),
        ("True", True),
        ("null", None),
        ("'it'", "it"),
        ('"a\\"b"', 'a"b'),
        (r"'\n\t\\\x41\u00e9\U0001f600\d'", "\n\t\\A\xe9\U0001f600\\d"),
        ('"""two\nlines"""', "two\nlines"),
        ("[1, 'a', (2, 3),]", [1, "a", [2, 3]]),
        ("{'a': {\"b\": []}}", {"a": {"b": []}}),
        ("{}", {}),
    ],
)
def test_python(text, value):
    read, end = PYTHON.value(f" {text} rest", 0)
    assert read == value
    assert type(read) is type(value)
    assert end <= len(text) + 1


def test_gemma():
    text = '{city:<|"|>a "b" {c}\\n<|"|>,at:{x:1,y-z:[true,null,<|"|><|"|>]}}'
    assert GEMMA.value(text, 0) == ({"city": 'a "b" {c}\\n', "at": {"x": 1, "y-z": [True, None, ""]}}, len(text))


@pytest.mark.parametrize(
    "text", ["", "oops", "'open", "[1", "[1 2]", "{1: 2}", "{'a' 2}", "f(x)", "{", "[" * 10_000, "9" * 5_000, '"a\\"', "--1"]
)
def test_what_is_no_literal(text):
    with pytest.raises(ValueError, match=r"\w"):
        PYTHON.value(text, 0)


def test_a_long_string_costs_its_length():
    started = time.process_time()
    assert len(PYTHON.value('"' + '\\"' * 200_000 + '"', 0)[0]) == 200_000
    assert time.process_time() - started < 5
