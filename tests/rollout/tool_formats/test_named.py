"""Names in headers: DeepSeek, Kimi and the newer Mistral models."""

from __future__ import annotations

import pytest

from agentrl.rollout.tool_formats.named import DEEPSEEK_V31, KIMI, MISTRAL, MISTRAL_ARGS
from agentrl.rollout.toolcalls import Malformed, ToolCall, extract_calls

CALL = ToolCall(name="run", arguments={"cmd": "<|tool_call_end|> [TOOL_CALLS]"})
STOP = ToolCall(name="stop", arguments={})


def told(text, tool_format):
    return [call.reason if isinstance(call, Malformed) else call for call in extract_calls(text, tool_format=tool_format)]


@pytest.mark.parametrize("tool_format", [KIMI, DEEPSEEK_V31], ids=lambda tool_format: tool_format.name)
def test_a_section(tool_format):
    both = tool_format.write([CALL, STOP])
    assert told(both, tool_format) == [CALL, STOP]
    broken = both.replace('{"cmd"', '{"cmd', 1)
    assert told(broken, tool_format)[-1] == STOP
    assert told(broken, tool_format)[0] == "invalid JSON"
    assert told(f"{broken} so {both}", tool_format)[-2:] == [CALL, STOP]
    section = tool_format.opening.match(both).group()
    assert told(section, tool_format) == [f"unclosed {section}"]
    assert told(both.replace("run", "", 1), tool_format) == ["missing name", STOP]


def test_a_section_without_its_opening_is_read_all_the_same():
    text = "<|tool_call_begin|>functions.stop:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert told(text, KIMI) == [STOP]
    assert told(text.replace("functions.stop:0", "stop"), KIMI) == ["missing name"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[TOOL_CALLS]stop[ARGS]{}", [STOP]),
        ("[TOOL_CALLS]stop{}", [STOP]),
        ("[TOOL_CALLS]stop[CALL_ID]a1b2c3d4e[ARGS]{}[TOOL_CALLS]stop[ARGS]{}", [STOP, STOP]),
        ('[TOOL_CALLS][{"name": "stop", "arguments": {}}]', [STOP]),
        ('[TOOL_CALLS] [{"name": "stop", "arguments": "{}"}]', [STOP]),
        ('[TOOL_CALLS] [{"name": "stop", "arguments": {}}, {"name": "stop"', ["invalid JSON"]),
        ("[TOOL_CALLS] []", ["no call"]),
        ("[TOOL_CALLS]", ["missing name"]),
        ("[TOOL_CALLS]stop[ARGS]{oops[TOOL_CALLS]stop[ARGS]{}", ["invalid JSON", STOP]),
        ("[TOOL_CALLS]stop[ARGS][1]", ["arguments are not an object"]),
        ("[THINK][TOOL_CALLS]stop[ARGS]{}[/THINK]", []),
    ],
)
@pytest.mark.parametrize("tool_format", [MISTRAL, MISTRAL_ARGS], ids=lambda tool_format: tool_format.name)
def test_both_forms_of_mistral(tool_format, text, expected):
    assert told(text, tool_format) == expected
