"""Which schema a row has, and what is refused in it."""

import pytest
from hypothesis import given
from row_strategies import rows

from agentrl.data.faults import RowFault
from agentrl.data.schemas import Found, check_row, detect, detect_all, notes
from agentrl.errors import ConfigError

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
OTHER = {"role": "assistant", "content": "hum"}


def found(row, kind=None):
    schema = detect(row, kind)
    check_row(row, schema)
    return schema


def refused(row, schema=None):
    """The fault of a row."""
    with pytest.raises(RowFault) as caught:
        check_row(row, schema or detect(row))
    return caught.value


@given(rows())
def test_every_schema_is_told_by_its_columns_and_its_rows_pass(drawn):
    row, schema = drawn
    assert found(row) == schema


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"text": "a"}, "standard language_modeling"),
        ({"messages": [USER, ASSISTANT]}, "conversational language_modeling"),
        ({"chosen": "ab", "rejected": "ac"}, "standard preference (implicit prompt)"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "conversational preference (implicit prompt)"),
        ({"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "conversational preference (implicit prompt)"),
        (
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER], "reference": [ASSISTANT], "margin": 0.5},
            "conversational preference",
        ),
        ({"prompt": "a", "completions": ["b"], "labels": [1]}, "stepwise"),
        ({"input_ids": [1, 2], "labels": [-100, 2]}, "tokenized"),
        ({"prompt": "a", "messages": [USER, ASSISTANT]}, "conversational language_modeling"),
    ],
)
def test_a_schema_is_named(row, shown):
    assert str(found(row)) == shown


def test_what_the_objective_takes_decides_between_schemas():
    row = {"prompt": "hi", "messages": [USER, ASSISTANT], "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}
    assert found(row, "supervised").schema == "language_modeling"
    assert found(row, "preference").schema == "preference"
    with pytest.raises(ConfigError, match=r"fit language_modeling \(`messages`\) and preference .* data\.columns"):
        detect(row)


def test_a_completion_with_a_label_is_no_supervised_row():
    assert detect({"prompt": "a", "completion": "b", "label": False}, "supervised").schema == "unpaired_preference"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "a", "output": "b"},
            r'nearest is prompt_completion.*data\.columns={"instruction": "prompt", "output": "completion"}',
        ),
        ({"PROMPT": "a", " Completion": "b"}, r'data\.columns={"PROMPT": "prompt", " Completion": "completion"}'),
        ({"Question": "a", "ANSWER": "b"}, r'data\.columns={"Question": "prompt", "ANSWER": "completion"}'),
        ({"promt": "a", "completion": "b"}, r'data\.columns={"promt": "prompt"}'),
        ({"chosen": "a"}, r"nearest is preference, which has `chosen`, `rejected`: add `rejected`"),
        ({"completion": "a", "label": True}, r"nearest is unpaired_preference.*: add `prompt`"),
        ({"question": "a", "steps": ["b"], "labels": [1]}, r'nearest is stepwise.*{"question": "prompt", "steps": "completions"}'),
        ({"foo": 1}, r"fit no schema\. The schemas and their columns are .*stepwise: `prompt`, `completions`, `labels`"),
        ({}, "no columns fit no schema"),
        ({"text": "a", "messages": []}, r"fit language_modeling \(`text`\) and language_modeling \(`messages`\)"),
    ],
)
def test_columns_of_no_schema_or_of_several_are_refused_with_the_nearest(row, message):
    with pytest.raises(ConfigError, match=message):
        detect(row)


def test_the_schema_of_a_dataset_is_that_of_most_rows():
    good, bad = {"prompt": "a", "completion": "b"}, {"prompt": "a"}
    assert detect_all([bad, good, good]).schema == "prompt_completion"
    assert detect_all([{"foo": 1}, good]).schema == "prompt_completion"
    with pytest.raises(ConfigError, match="`foo` fit no schema"):
        detect_all([{"foo": 1}, {"bar": 1}])
    with pytest.raises(ConfigError, match="no rows"):
        detect_all([])


def test_a_row_without_a_column_of_the_others_is_a_fault():
    schema = Found(schema="preference", conversational=False)
    assert str(refused({"prompt": "a", "chosen": "b"}, schema)) == (
        "`rejected` must be there, as in standard preference rows, got nothing: the row has prompt, chosen"
    )


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
TALK = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]}
STEPS = {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}
LABELLED = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"text": None}, "text", "text that is not empty, got null"),
        ({"text": " \n"}, "text", "got the text"),
        ({"text": 3}, "text", "got the number 3"),
        ({"prompt": ""}, "prompt", "text that is not empty"),
        ({"prompt": None, "completion": "b"}, "prompt", "got null"),
        ({"prompt": "a", "completion": ""}, "completion", "not empty, got an empty text"),
        ({"prompt": [USER], "completion": []}, "completion", "at least one message, got an empty list"),
        ({"prompt": [], "completion": [ASSISTANT]}, "prompt", "at least one message"),
        ({"prompt": "a", "completion": [ASSISTANT]}, "prompt", "a list of messages"),
        ({"prompt": [USER], "completion": "b"}, "prompt", r"got messages \(a list of 1"),
        ({"prompt": [USER], "completion": [USER]}, "completion[0].role", "assistant: a completion begins with one, got the text 'user'"),
        ({"prompt": [USER], "completion": [ASSISTANT, USER]}, "completion[1].role", "assistant: a completion ends with one"),
        ({"prompt": [USER], "completion": [{"role": "assistant", "content": " "}]}, "completion", "with text, reasoning or a call"),
        ({"prompt": "a", "completion": '[{"role": "assistant", "content": "b"}]'}, "completion", "the text of such a list"),
        ({"prompt": "a", "completion": "[{'from': 'gpt', 'value': 'b'}]"}, "completion", "the text of such a list"),
        ({"messages": []}, "messages", "at least one message"),
        ({**PAIR, "rejected": None}, "rejected", "got null"),
        ({**PAIR, "rejected": "b"}, "rejected", "another completion than `chosen`, got the same one"),
        ({**PAIR, "chosen": [ASSISTANT]}, "rejected", "a list of messages"),
        ({**PAIR, "margin": "1"}, "margin", "a finite number, got the text '1'"),
        ({**PAIR, "margin": 10**400}, "margin", r"a finite number, got a number of more than 60 digits; the largest is 3.4e\+38"),
        ({**PAIR, "weight": 10**5000}, "weight", "a finite number, got a number of more than 60 digits"),
        ({**PAIR, "weight": 1e39}, "weight", r"a finite number, got the number 1e\+39; the largest is 3.4e\+38"),
        ({**PAIR, "margin": float("inf")}, "margin", r"a finite number, got the number inf"),
        ({"input_ids": [1, 2, 10**30]}, r"input_ids[2]", r"below 2\^31, got the number 1000"),
        ({"input_ids": [1, 2**31, 2]}, r"input_ids[1]", r"below 2\^31, got the number 2147483648"),
        ({**PAIR, "margin": True}, "margin", "a finite number"),
        ({**PAIR, "margin": float("nan")}, "margin", "a finite number"),
        ({**PAIR, "weight": -1}, "weight", "0 or more"),
        ({**PAIR, "reference": ""}, "reference", "not empty"),
        ({**PAIR, "images": ["a.png"]}, "images", "agentrl trains text only"),
        ({**PAIR, "tools": "[{"}, "tools", "which is not JSON"),
        ({**PAIR, "tools": {"name": "f"}}, "tools", "a list of tools"),
        ({**PAIR, "tools": [{"function": {}}]}, "tools[0]", "function"),
        ({**PAIR, "chat_template_kwargs": "[1]"}, "chat_template_kwargs", "a JSON object"),
        ({**PAIR, "privileged_context": 3}, "privileged_context", "text, or a list of messages"),
        ({**TALK, "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "chosen", "the whole conversation, with `prompt` again"),
        ({"chosen": "abc", "rejected": "ab"}, "rejected", "`chosen` begins with all of it"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "rejected", "the same one"),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [{**USER, "content": "x"}, OTHER]},
            "rejected",
            "another first message; give the prompt",
        ),
        ({"chosen": [USER, USER], "rejected": [USER, OTHER]}, "chosen[1].role", "the last message is what is compared"),
        (
            {"chosen": [USER, USER, ASSISTANT], "rejected": [USER, {**USER, "content": "x"}, OTHER]},
            "chosen[1].role",
            "in which the two differ",
        ),
        (
            {"prompt": "else", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
            "prompt",
            "the text of a message that `chosen` and `rejected` share",
        ),
        ({**LABELLED, "label": "true"}, "label", r"true or false \(or 1 or 0\), got the text 'true'"),
        ({**LABELLED, "label": 2}, "label", "got the number 2"),
        ({**LABELLED, "label": 1.0}, "label", "got the number 1.0"),
        ({**LABELLED, "label": None}, "label", "got null"),
        ({**STEPS, "labels": [True]}, "labels", "as long as `completions`, got 1 labels of 2 steps"),
        ({**STEPS, "labels": [True, 0]}, "labels", "all true or false, or all 1 or 0"),
        ({**STEPS, "labels": [True, "no"]}, "labels[1]", "true or false"),
        ({**STEPS, "labels": True}, "labels", "a list with one label a step"),
        ({**STEPS, "completions": ["b", " "]}, "completions[1]", "the text of a step"),
        ({**STEPS, "completions": [], "labels": []}, "completions", "at least one, got an empty list"),
        ({"input_ids": []}, "input_ids", "at least one"),
        ({"input_ids": "1 2"}, "input_ids", "a list of token ids"),
        ({"input_ids": [1, -2]}, "input_ids[1]", "a token id, 0 or more"),
        ({"input_ids": [1, True]}, "input_ids[1]", "a token id"),
        ({"input_ids": [1, 2], "labels": [-100]}, "labels", "as long as `input_ids`, got 1 of 2"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, "labels[1]", "the token's id, or -100, got 3 of token 2"),
        (
            {"input_ids": [1, 2], "labels": [1, -100]},
            "input_ids",
            "at least one token after the first that is trained, got none trained by `labels`",
        ),
        ({"input_ids": [1, 2], "completion_mask": [1, 0]}, "input_ids", "none trained by `completion_mask`"),
        ({"input_ids": [1, 2], "attention_mask": [0, 1]}, "attention_mask", "rows are given without padding"),
        ({"input_ids": [1]}, "input_ids", "got 1 token"),
    ],
)
def test_a_bad_row_names_field_expectation_and_value(row, field, message):
    fault = refused(row)
    assert fault.field == field
    assert fault.where is None
    with pytest.raises(RowFault, match=message):
        raise fault


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "completion": "b"},
        {"prompt": [USER, {"role": "assistant", "content": "so"}], "completion": [ASSISTANT]},
        {"prompt": "a", "completion": "b", "tools": "[]", "chat_template_kwargs": None, "images": []},
        {"prompt": "a", "completion": "b", "tools": ['{"name": "f"}']},
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "completion_mask": [False, True, False]},
        {**LABELLED, "label": 0},
        {"chosen": "xa", "rejected": "yb"},
    ],
)
def test_what_is_allowed_passes(row):
    assert found(row)


def test_what_is_worth_knowing_is_noted():
    assert list(notes({**LABELLED, "label": 1}, detect(LABELLED))) == ["labels are numbers, 0 read as false and 1 as true"]
    assert not list(notes(LABELLED, detect(LABELLED)))
    row = {"prompt": "ab", "chosen": "abc", "rejected": "abd"}
    assert list(notes(row, detect(row))) == ["completions begin with their prompt, which stands before them already"]
    assert not list(notes({**row, "rejected": "x"}, detect(row)))
    row = {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}
    assert "`prompt` is not used" in next(notes(row, detect(row)))
    for row in ({"prompt": "", "completion": "b"}, {**PAIR, "prompt": ""}, {**LABELLED, "prompt": ""}):
        assert "the first token of a completion is not trained" in next(notes(row, detect(row)))
    for row in (TALK, {"prompt": [USER], "completion": [ASSISTANT]}):
        assert not list(notes(row, detect(row)))
        begun = {**row, "prompt": [USER, {"role": "assistant", "content": "It"}]}
        assert "is a further turn, and not the rest of that message" in next(notes(begun, detect(begun)))
