"""Lists of Python calls: nothing is evaluated, and a list is a call only where it looks like one."""

from __future__ import annotations

import pytest

from agentrl.rollout.tool_formats.pythonic import LFM, LLAMA_PYTHONIC
from agentrl.rollout.toolcalls import Malformed, ToolCall, extract_calls

STOP = ToolCall(name="stop", arguments={})


def told(text, tool_format):
    return [call.reason if isinstance(call, Malformed) else call for call in extract_calls(text, tool_format=tool_format)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[stop()]", [STOP]),
        ("<|python_start|>[stop(), stop()]<|python_end|>", [STOP, STOP]),
        ("<|python_start|>[stop()]", ["unclosed <|python_start|>"]),
        ("[math.gcd(a=1, b=[2, {'c': (3,)}])]", [ToolCall(name="math.gcd", arguments={"a": 1, "b": [2, {"c": [3]}]})]),
        ("[run(cmd='a]) b', n=-1)]", [ToolCall(name="run", arguments={"cmd": "a]) b", "n": -1})]),
        ("[run('ls')]", ["invalid call"]),
        ("[run(cmd=open('x'))]", ["invalid call"]),
        ("[run(cmd=1 + 1)]", ["invalid call"]),
        ("[stop()] is what I call", ["invalid call"]),
        ("[stop(]", ["invalid call"]),
        ("[1, 2, 3]", []),
        ("See [the page](http://x)", []),
    ],
)
def test_llama(text, expected):
    assert told(text, LLAMA_PYTHONIC) == expected


def test_lfm():
    text = "Let me.<|tool_call_start|>[stop(), run(on=true, off=null)]<|tool_call_end|>"
    assert told(text, LFM) == [STOP, ToolCall(name="run", arguments={"on": True, "off": None})]
    assert told(text.replace("[", "", 1), LFM) == ["invalid call"]
    assert told(f"<|tool_call_start|>oops{text}", LFM) == ["invalid call", *told(text, LFM)]
