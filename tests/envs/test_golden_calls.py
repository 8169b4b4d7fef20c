"""Golden calls are read as what they were written from."""

from __future__ import annotations

from agentrl.envs.golden_calls import golden_call
from agentrl.rollout.toolcalls import ToolCall, extract_calls


def test_a_golden_call_is_read_as_what_was_written():
    arguments = {"name": 'say "a\\b"', "text": "</tool_call> caf\u00e9", "count": 2}
    assert extract_calls(golden_call("act", **arguments)) == [ToolCall(name="act", arguments=arguments)]
