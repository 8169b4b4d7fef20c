"""The conversions that TRL ships, on the same rows, and the rows on which ours differ on purpose."""

import copy

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from row_strategies import preference, prompt_completion, rows

from agentrl.data.convert import canonical, convert, extract_prompt, join_prompt, rows_for
from agentrl.data.faults import RowFault
from agentrl.data.schemas import detect

pytestmark = pytest.mark.trl
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("trl.data_utils")


@given(preference(True) | preference(False))
def test_the_prompt_that_is_extracted_is_theirs(theirs, row):
    joined = {name: join_prompt(row)[name] for name in ("chosen", "rejected")}
    if isinstance(row["prompt"], str):
        shared = extract_prompt(joined)["prompt"]
        assume(shared or joined["chosen"][-1] != " ")  # they look behind the last character where there is none before the first
    assert extract_prompt(joined) == theirs.extract_prompt(joined)


def test_where_one_is_the_beginning_of_the_other_they_take_its_last_message_for_a_completion(theirs):
    row = {"chosen": "The sky is", "rejected": "The sky is blue"}
    assert theirs.extract_prompt(row) == {"prompt": "The sky i", "chosen": "s", "rejected": "s blue"}
    with pytest.raises(RowFault, match="`chosen` must be a completion behind"):
        extract_prompt(row)


def test_where_nothing_is_shared_they_may_take_the_end_for_the_beginning(theirs):
    row = {"chosen": "a ", "rejected": "b"}
    assert theirs.extract_prompt(row) == {"prompt": "a", "chosen": " ", "rejected": "b"}
    assert extract_prompt(row) == {"prompt": "", "chosen": "a ", "rejected": "b"}


@settings(max_examples=25)
@given(st.lists(preference(True), min_size=1, max_size=3))
def test_the_unpaired_rows_are_theirs_in_pairs(theirs, rows):
    kept = ("prompt", "chosen", "rejected")
    plain = [{name: row[name] for name in kept} for row in rows]
    columns = theirs._unpair_row({name: [row[name] for row in plain] for name in kept})
    # all chosen of a batch before all rejected there, each chosen before its rejected here
    expected = [{name: columns[name][place] for name in columns} for index in range(len(plain)) for place in (index, index + len(plain))]
    assert [made for row in plain for made in convert(row, detect(row), "unpaired_preference")] == expected


def test_they_keep_what_belongs_to_the_pair_in_unpaired_rows(theirs):
    columns = theirs._unpair_row({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "margin": [1]})
    assert columns["margin"] == [1, 1]
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}
    assert all("margin" not in made for made in rows_for("unpaired", row, detect(row)))


@given(prompt_completion(True))
def test_sharegpt_rows_become_their_messages(theirs, row):
    messages = [message for message in row["prompt"] + row["completion"] if message.keys() == {"role", "content"}]
    assume(messages)
    turns = {"conversations": [{"from": message["role"], "value": message["content"]} for message in messages]}
    expected = theirs.maybe_convert_to_chatml(copy.deepcopy(turns))
    assert canonical(turns) == expected == {"messages": messages}


def test_they_keep_the_speakers_of_sharegpt_whom_no_template_knows(theirs):
    turns = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    assert [message["role"] for message in theirs.maybe_convert_to_chatml(copy.deepcopy(turns))["messages"]] == ["human", "gpt"]
    assert [message["role"] for message in canonical(turns)["messages"]] == ["user", "assistant"]


@settings(max_examples=50)
@given(rows())
def test_what_is_conversational_is_so_for_both(theirs, drawn):
    row, found = drawn
    assert found.conversational == theirs.is_conversational(row)


def test_a_prompt_of_text_beside_conversations_gives_way_in_both(theirs):
    user, one, other = ({"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "ho"), ("assistant", "hum")))
    row = {"prompt": "hi", "chosen": [user, one], "rejected": [user, other]}
    assert rows_for("preference", row, detect(row)) == [theirs.maybe_extract_prompt(row)]
