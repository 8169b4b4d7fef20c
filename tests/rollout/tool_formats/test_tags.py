"""Functions in tags: where values end, and what is left of a block with a mistake in it."""

from __future__ import annotations

import pytest

from agentrl.rollout.tool_formats.hermes import QWEN_CODER
from agentrl.rollout.tool_formats.tags import DEEPSEEK_TAGS, GLM, MINIMAX
from agentrl.rollout.toolcalls import Malformed, extract_calls


def told(text, tool_format):
    return [
        call.reason if isinstance(call, Malformed) else (call.name, call.arguments) for call in extract_calls(text, tool_format=tool_format)
    ]


def coder(inner):
    return f"<tool_call>\n{inner}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (coder("<function=run><parameter=cmd>\n\n a \n\n</parameter></function>"), [("run", {"cmd": "\n a \n"})]),
        (coder("<function=run><parameter=cmd>echo </tool_call> > x</parameter></function>"), [("run", {"cmd": "echo </tool_call> > x"})]),
        (coder("<function=run></function> and more"), ["invalid function"]),
        (coder("<function=run><parameter=cmd>ls</function>") + coder("<function=stop></function>"), ["invalid function", ("stop", {})]),
        (coder("<function=run><parameter=cmd>ls</parameter>") + coder("<function=stop></function>"), ["invalid function", ("stop", {})]),
        (coder("<function=run><parameter=a b>1</parameter></function>"), ["invalid function"]),
        (coder("<function=>x</function>"), ["invalid function"]),
        (coder("<function=run></function>") + "<tool_call><function=run></function> never closed", [("run", {}), "unclosed <tool_call>"]),
    ],
)
def test_qwen_coder(text, expected):
    assert told(text, QWEN_CODER) == expected


def block(*functions):
    return "<minimax:tool_call>\n" + "\n".join(functions) + "\n</minimax:tool_call>"


GOOD = '<invoke name="run">\n<parameter name="cmd">ls</parameter>\n</invoke>'
BAD = '<invoke name="run">\n<parameter name="cmd">ls\n</invoke>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (block(GOOD, GOOD), [("run", {"cmd": "ls"})] * 2),
        (block(GOOD, BAD), [("run", {"cmd": "ls"}), "invalid function"]),
        (block(BAD) + block(GOOD), ["invalid function", ("run", {"cmd": "ls"})]),
        (block(), ["no function"]),
        (block(GOOD).removesuffix("</minimax:tool_call>"), ["unclosed <minimax:tool_call>"]),
        (block(GOOD, "garbage"), [("run", {"cmd": "ls"}), "invalid function"]),
    ],
)
def test_a_block_of_functions(text, expected):
    assert told(text, MINIMAX) == expected


def test_deepseek_says_what_is_a_string():
    bar = "\uff5c"

    def parameter(key, string, value):
        return f'<{bar}DSML{bar}parameter name="{key}" string="{string}">{value}</{bar}DSML{bar}parameter>\n'

    inner = parameter("a", "true", "020") + parameter("b", "false", '[1, "x"]') + parameter("c", "false", "020")
    function = f'<{bar}DSML{bar}invoke name="run">\n{inner}</{bar}DSML{bar}invoke>'
    text = f"<{bar}DSML{bar}function_calls>\n{function}\n</{bar}DSML{bar}function_calls>"
    assert told(text, DEEPSEEK_TAGS) == [("run", {"a": "020", "b": [1, "x"], "c": "020"})]
    assert told(text.replace('string="true"', 'string="maybe"'), DEEPSEEK_TAGS) == ["invalid function"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<tool_call>run<arg_key>cmd</arg_key><arg_value>ls\n</arg_value></tool_call>", [("run", {"cmd": "ls\n"})]),
        ("<tool_call>\nstop\n</tool_call>", [("stop", {})]),
        ('<tool_call>{"name": "run"}</tool_call>', ["missing name"]),
        ("<tool_call>run<arg_key>cmd</arg_key></tool_call>", ["invalid function"]),
        ("<tool_call>run<arg_key>cmd</arg_key><arg_value>ls</tool_call><tool_call>stop</tool_call>", ["invalid function", ("stop", {})]),
        ("<tool_call>run now</tool_call>", ["invalid function"]),
    ],
)
def test_glm(text, expected):
    assert told(text, GLM) == expected
