"""What a list of messages may hold."""

import pytest

from agentrl.data.faults import RowFault
from agentrl.data.message_rules import check_messages, says_something

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x"},
        {"role": "tool", "content": "3", "name": "f", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}, "id": "1"}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant", "content": "x", "thinking": "hm", "weight": 1},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ],
)
def test_messages_of_each_kind_pass(message):
    assert check_messages([message], "messages") == [message]


@pytest.mark.parametrize(
    ("message", "field", "got"),
    [
        ("x", "m[0]", "an object with `role` and `content`, got the text 'x'"),
        ({"content": "x"}, "m[0].role", "got none: an object with the keys content"),
        ({"from": "human", "value": "x"}, "m[0].role", "are read in the column `conversations`"),
        ({"role": "critic", "content": "x"}, "m[0].role", "one of system, developer, user, assistant, tool, got the text 'critic'"),
        ({"role": ["user"], "content": "x"}, "m[0].role", "got a list"),
        ({"role": "user"}, "m[0].content", "text, got none"),
        ({"role": "user", "content": None}, "m[0].content", "text, got null"),
        ({"role": "user", "content": 3}, "m[0].content", "text, got the number 3"),
        ({"role": "assistant", "content": None}, "m[0].content", "or absent beside `tool_calls`"),
        ({"role": "user", "content": [{"type": "image"}]}, "m[0].content[0]", "one of type image; agentrl trains text only"),
        ({"role": "user", "content": ["x"]}, "m[0].content[0]", '"type": "text"'),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "m[0].tool_calls", "only assistant messages call tools"),
        ({"role": "assistant", "content": "x", "tool_calls": CALL}, "m[0].tool_calls", "a list of calls"),
        ({"role": "assistant", "content": "x", "tool_calls": ["f"]}, "m[0].tool_calls[0]", "a call"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": "f"}]}, "m[0].tool_calls[0].function", "an object with `name`"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"name": ""}]}, "m[0].tool_calls[0].name", "the tool's name"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": "{"}]},
            "m[0].tool_calls[0].arguments",
            "not JSON",
        ),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": [1]}]},
            "m[0].tool_calls[0].arguments",
            "a JSON object",
        ),
        ({"role": "user", "content": "x", "thinking": "y"}, "m[0].thinking", "only assistant messages reason"),
        ({"role": "assistant", "content": "x", "thinking": 3}, "m[0].thinking", "text, got the number 3"),
        ({"role": "tool", "content": "x", "name": 3}, "m[0].name", "text or absent"),
    ],
)
def test_a_bad_message_is_named(message, field, got):
    with pytest.raises(RowFault, match=r".") as caught:
        check_messages([message], "m")
    assert caught.value.field == field
    assert got in str(caught.value)


@pytest.mark.parametrize("value", [None, "x", {}, 3])
def test_what_is_no_list_is_no_conversation(value):
    with pytest.raises(RowFault, match="`m` must be a list of messages"):
        check_messages(value, "m")


def test_a_message_says_something_by_text_call_or_reasoning():
    assert says_something({"role": "assistant", "content": "x"})
    assert says_something({"role": "assistant", "tool_calls": [CALL]})
    assert says_something({"role": "assistant", "content": "", "thinking": "x"})
    assert says_something({"role": "assistant", "content": [{"type": "text", "text": "x"}]})
    assert not says_something({"role": "assistant", "content": " \n", "thinking": " "})
    assert not says_something({"role": "assistant", "content": [{"type": "text", "text": ""}]})
