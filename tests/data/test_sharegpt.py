"""ShareGPT rows as messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import arguments, systems, texts, words

from agentrl.data.faults import RowFault
from agentrl.data.sharegpt import as_messages

BACK = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def turns_of(messages):
    """Messages as ShareGPT turns."""
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            yield {"from": "function_call", "value": json.dumps([call["function"] for call in calls])}
        else:
            yield {"from": BACK[message["role"]], "value": message["content"]}


@st.composite
def conversations(draw):
    """Messages that ShareGPT turns can say."""
    user = st.builds(lambda text: {"role": "user", "content": text}, texts)
    said = st.builds(lambda text: {"role": "assistant", "content": text}, texts)
    calls = st.builds(lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}}, words, arguments)
    calling = st.builds(lambda made: {"role": "assistant", "content": "", "tool_calls": made}, st.lists(calls, min_size=1, max_size=2))
    result = st.builds(lambda text: {"role": "tool", "content": text}, texts)
    return [*draw(st.lists(systems, max_size=1)), *draw(st.lists(user | said | calling | result, min_size=1, max_size=5))]


@given(conversations())
def test_messages_come_back_from_their_sharegpt_turns(messages):
    row = {"conversations": list(turns_of(messages)), "id": 3}
    before = json.dumps(row)
    assert as_messages(row) == {"messages": messages, "id": 3}
    assert json.dumps(row) == before


def test_a_single_call_need_not_be_a_list():
    call = {"name": "f", "arguments": {"a": 1}}
    row = as_messages({"conversations": [{"from": "function_call", "value": json.dumps(call)}]})
    assert row["messages"] == [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}]


def test_turns_in_the_columns_of_a_preference_are_converted_too():
    turn = {"from": "gpt", "value": "x", "weight": 1}
    said = {"role": "assistant", "content": "x", "weight": 1}
    assert as_messages({"chosen": [turn], "rejected": [turn]}) == {"chosen": [said], "rejected": [said]}


def test_messages_under_the_name_conversations_are_messages():
    assert as_messages({"conversations": [{"role": "user", "content": "x"}]}) == {"messages": [{"role": "user", "content": "x"}]}


def test_a_system_column_becomes_the_first_message_once():
    human = {"from": "human", "value": "x"}
    first = {"role": "system", "content": "S"}
    assert as_messages({"system": "S", "conversations": [human]})["messages"] == [first, {"role": "user", "content": "x"}]
    own = as_messages({"system": "S", "conversations": [{"from": "system", "value": "own"}, human]})
    assert own == {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]}
    assert as_messages({"system": "S", "text": "x"}) == {"system": "S", "text": "x"}


@pytest.mark.parametrize(
    ("turn", "field", "got"),
    [
        ({"from": "humn", "value": "x"}, "conversations[1].from", "got the text 'humn'"),
        ({"from": None, "value": "x"}, "conversations[1].from", "got null"),
        ({"from": "human"}, "conversations[1]", "an object with `from` and `value`"),
        ({"from": "function_call", "value": "{"}, "conversations[1].value", "not JSON"),
        ({"from": "function_call", "value": '["f"]'}, "conversations[1].value", "the JSON of a call"),
    ],
)
def test_a_turn_that_is_no_message_is_named(turn, field, got):
    with pytest.raises(RowFault, match=r".") as caught:
        as_messages({"conversations": [{"from": "human", "value": "hi"}, turn]})
    assert caught.value.field == field
    assert got in str(caught.value)
