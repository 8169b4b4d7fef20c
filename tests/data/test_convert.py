"""From one schema to another: what can be inverted is inverted exactly, and nothing is changed in place."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import mutated, preference, prompt_completion, rows, stepwise

from agentrl.config_data import DataConfig
from agentrl.data.convert import (
    canonical,
    check_kind,
    check_renames,
    convert,
    convertible,
    extract_prompt,
    found_after,
    join_prompt,
    rows_for,
)
from agentrl.data.csv_rows import Cell
from agentrl.data.faults import RowFault
from agentrl.data.schemas import ACCEPTED, SCHEMAS, Found, check_row, detect
from agentrl.errors import ConfigError

USER, ASSISTANT, OTHER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "assistant", "content": "hum"}
STANDARD = {schema: Found(schema=schema, conversational=False) for schema in SCHEMAS}


def bytes_of(row):
    """What a row is down to the order of its keys."""
    return json.dumps(row, ensure_ascii=False).encode()


@given(rows(), st.data())
def test_every_conversion_gives_rows_of_the_schema_and_leaves_its_row_alone(drawn, data):
    row, found = drawn
    to = data.draw(st.sampled_from([found.schema, *convertible(found)]))
    before = bytes_of(row)
    for made in convert(row, found, to):
        after = found_after(found, to) if found.schema != "stepwise" else STANDARD[to]
        check_row(made, after)
        assert detect(made) == after
        assert all(bytes_of(made[name]) == bytes_of(row[name]) for name in ("tools", "chat_template_kwargs", "source") if name in row)
    assert bytes_of(row) == before


@given(preference(True) | preference(False))
def test_a_prompt_that_was_joined_is_extracted_again(row):
    again = extract_prompt(join_prompt(row))
    if isinstance(row["prompt"], str) and row["prompt"].endswith(" "):
        row = {**row, "prompt": row["prompt"][:-1], **{name: f" {row[name]}" for name in ("chosen", "rejected")}}
    assert again == row
    assert {name: bytes_of(value) for name, value in again.items()} == {name: bytes_of(value) for name, value in row.items()}


@given(preference(True) | preference(False))
def test_an_unpaired_preference_holds_the_pair(row):
    good, bad = convert(row, detect(row), "unpaired_preference")
    assert (good["label"], bad["label"]) == (True, False)
    assert good["prompt"] == bad["prompt"] == row["prompt"]
    again = {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}
    assert again == {name: row[name] for name in again}


@given(prompt_completion(True) | prompt_completion(False))
def test_a_whole_text_is_the_prompt_and_the_completion(row):
    found = detect(row)
    (whole,) = convert(row, found, "language_modeling")
    text = whole["messages"] if found.conversational else whole["text"]
    assert text[: len(row["prompt"])] == row["prompt"]
    assert text[len(row["prompt"]) :] == row["completion"]
    assert convert(row, found, "prompt_only") == [{name: value for name, value in row.items() if name != "completion"}]


@given(stepwise())
def test_the_steps_are_one_completion_which_is_right_if_all_are(row):
    text = "".join(row["completions"])
    found = detect(row)
    assert convert(row, found, "unpaired_preference") == [{"prompt": row["prompt"], "completion": text, "label": all(row["labels"])}]
    right = all(row["labels"])
    assert convert(row, found, "prompt_completion") == [{"prompt": row["prompt"], "completion": text}] * right
    assert convert(row, found, "language_modeling") == [{"text": row["prompt"] + text}] * right
    assert convert(row, found, "prompt_only") == [{"prompt": row["prompt"]}]


@pytest.mark.parametrize("to", ["language_modeling", "prompt_completion"])
def test_a_completion_labelled_false_is_not_imitated(to):
    assert convert({"prompt": "a", "completion": "b", "label": False}, STANDARD["unpaired_preference"], to) == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is red.", "The sky is"),
        (" a", " b", ""),
        ("a", "b", ""),
        ("x  a", "x  b", "x "),
        ([USER, ASSISTANT], [USER, OTHER], [USER]),
        ([USER, ASSISTANT, USER, ASSISTANT], [USER, ASSISTANT, USER, OTHER], [USER, ASSISTANT, USER]),
    ],
)
def test_the_prompt_is_the_longest_common_beginning(chosen, rejected, prompt):
    made = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert made == {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}


@pytest.mark.parametrize(("chosen", "rejected", "field"), [("ab", "abc", "chosen"), ("abc", "ab", "rejected"), ("ab", "ab", "chosen")])
def test_a_completion_with_nothing_behind_the_prompt_is_a_fault(chosen, rejected, field):
    with pytest.raises(RowFault, match=f"`{field}` must be a completion behind"):
        extract_prompt({"chosen": chosen, "rejected": rejected})


def test_a_prompt_of_text_beside_whole_conversations_gives_way_to_what_they_share():
    row = {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "score": 3}
    assert rows_for("preference", row, detect(row)) == [{"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER], "score": 3}]


def test_a_preference_is_given_without_its_prompt_where_that_is_asked_for():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    made = convert(row, detect(row), "preference", implicit=True)
    assert made == [{"chosen": "ab", "rejected": "ac"}]
    assert convert(made[0], detect(made[0]), "preference", implicit=True) == made
    assert convert(made[0], detect(made[0]), "preference") == [row]


def test_what_belongs_to_a_pair_goes_with_it():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1, "reference": "d", "tools": "[]"}
    found = detect(row)
    assert convert(row, found, "prompt_completion") == [{"prompt": "a", "completion": "b", "tools": "[]"}]
    assert convert(row, found, "language_modeling") == [{"text": "ab", "tools": "[]"}]
    assert [set(made) for made in convert(row, found, "unpaired_preference")] == [{"prompt", "completion", "label", "tools"}] * 2


@given(rows())
def test_an_objective_gets_what_it_takes_or_says_so(drawn):
    row, found = drawn
    for kind, accepted in ACCEPTED.items():
        if found.schema in accepted:
            last = check_kind(kind, found)
            if kind == "prompts" and isinstance(row["prompt"], str) and not row["prompt"].strip():
                with pytest.raises(RowFault, match="`prompt` must be text that is not empty"):
                    rows_for(kind, row, found)
                continue
            for made in rows_for(kind, row, found):
                check_row(made, last)
        else:
            with pytest.raises(ConfigError, match=f"the dataset has .*{found.schema}.* and the objective learns from {kind} data"):
                rows_for(kind, row, found)


def test_other_columns_of_a_prompt_are_none_of_its_business():
    row = {"prompt": "a", "completions": ["b"], "margin": 1}
    assert rows_for("prompts", row, detect(row, "prompts")) == [row]


@given(mutated())
def test_whatever_is_wrong_with_a_row_is_said_and_nothing_else_is_raised(drawn):
    row, found = drawn
    for kind in ACCEPTED:
        for schema in (found, None):
            with contextlib.suppress(ConfigError):  # anything else fails
                now = canonical(row)
                schema = schema or detect(now, kind)
                check_row(now, schema)
                assert all(isinstance(made, dict) for made in rows_for(kind, now, schema))


@pytest.mark.parametrize(
    ("kind", "row", "cure"),
    [
        (
            "supervised",
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "data.convert=prompt_completion, which leaves the rejected completions out",
        ),
        (
            "supervised",
            {"prompt": "a", "completion": "b", "label": True},
            "prompt_completion, which leaves out the rows that are labelled false",
        ),
        ("supervised", {"prompt": "a", "completions": ["b"], "labels": [True]}, "which leaves out rows with a wrong step"),
        ("unpaired", {"prompt": "a", "completions": ["b"], "labels": [True]}, "data.convert=unpaired_preference, which takes a wrong step"),
        ("preference", {"prompt": "a", "completion": "b"}, "no conversion leads there"),
        ("supervised", {"prompt": "a"}, "no conversion leads there"),
    ],
)
def test_a_conversion_that_loses_something_has_to_be_asked_for(kind, row, cure):
    with pytest.raises(ConfigError) as caught:
        rows_for(kind, row, detect(row))
    assert cure in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "row", "to", "made"),
    [
        ("supervised", {"chosen": "xa", "rejected": "xb"}, "prompt_completion", [{"prompt": "x", "completion": "a"}]),
        ("supervised", {"prompt": "x", "completion": "a", "label": 0}, "prompt_completion", []),
        ("supervised", {"prompt": "x", "completion": "a"}, "language_modeling", [{"text": "xa"}]),
        (
            "unpaired",
            {"prompt": "x", "completions": ["a", "b"], "labels": [1, 0]},
            "unpaired_preference",
            [{"prompt": "x", "completion": "ab", "label": False}],
        ),
        ("preference", {"chosen": "xa", "rejected": "xb"}, "preference", [{"prompt": "x", "chosen": "a", "rejected": "b"}]),
    ],
)
def test_a_conversion_that_is_asked_for_comes_first(kind, row, to, made):
    assert rows_for(kind, row, detect(row), to) == made


@pytest.mark.parametrize(
    ("schema", "to", "ways"),
    [
        ("prompt_completion", "preference", "can be converted to language_modeling, prompt_only"),
        ("language_modeling", "prompt_completion", "cannot be converted to another schema"),
        ("unpaired_preference", "stepwise", "can be converted to language_modeling, prompt_completion, prompt_only"),
    ],
)
def test_what_no_conversion_leads_to_is_refused_with_what_there_is(schema, to, ways):
    with pytest.raises(ConfigError, match=f"standard {schema} rows cannot become {to}: they {ways}"):
        check_kind("supervised", STANDARD[schema], to)
    with pytest.raises(ConfigError, match=ways):
        convert({}, STANDARD[schema], to)


def test_labels_become_booleans():
    assert rows_for("unpaired", {"prompt": "a", "completion": "b", "label": 1}, STANDARD["unpaired_preference"])[0]["label"] is True
    row = {"prompt": "a", "completions": ["b", "c"], "labels": [1, 0]}
    (made,) = rows_for("stepwise", row, STANDARD["stepwise"])
    assert [type(label) for label in made["labels"]] == [bool, bool]
    assert row["labels"] == [1, 0]
    assert rows_for("supervised", {"input_ids": [1, 2], "labels": [1, 2]}, STANDARD["tokenized"])[0]["labels"] == [1, 2]


def test_columns_are_renamed_and_left_out():
    row = {"question": "a", "answer": "b", "text": "c", "id": 1}
    assert canonical(row, {"question": "prompt", "answer": "completion", "text": "", "nothing": "x"}) == {
        "prompt": "a",
        "completion": "b",
        "id": 1,
    }
    assert canonical({"prompt": "a", "question": "b"}, {"prompt": "question", "question": "prompt"}) == {"question": "a", "prompt": "b"}


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"data\.columns makes `prompt` of `prompt` and `question`: leave one out"):
        canonical({"prompt": "a", "question": "b"}, {"question": "prompt"})


def test_cells_get_their_types_by_the_names_they_are_given():
    row = {"good": Cell("True"), "q": Cell("007"), "completion": Cell("null"), "margin": Cell("0.5"), "messages": Cell("[1]")}
    made = canonical(row, {"good": "label", "q": "prompt"})
    assert made == {"label": True, "prompt": "007", "completion": "null", "margin": 0.5, "messages": [1]}
    assert type(made["prompt"]) is str


@given(preference(True))
def test_messages_are_read_from_their_json(row):
    as_text = {name: json.dumps(value) if name in {"prompt", "chosen", "rejected"} else value for name, value in row.items()}
    assert bytes_of(canonical(as_text)) == bytes_of(row)
    assert canonical({"messages": json.dumps(row["prompt"])}) == {"messages": row["prompt"]}


@pytest.mark.parametrize("text", ["[1, 2]", "[{'role': 'user'}]", '[{"a": 1}]', '[{"role": "user"'])
def test_other_texts_that_look_like_lists_stay_text(text):
    assert canonical({"prompt": text, "completion": text, "text": text}) == {"prompt": text, "completion": text, "text": text}
    if text.startswith("[{'"):
        with pytest.raises(RowFault, match=r"`messages` must be a list of messages, or its JSON, got .* not JSON"):
            canonical({"messages": text})


def test_a_rename_of_a_column_that_is_not_there_is_refused():
    check_renames({"question": "prompt", "answer": ""}, [{"question": 1}, {"answer": 2}])
    with pytest.raises(
        ConfigError, match=r"data\.columns renames `qestion`, and the dataset has `question`, `id` \(did you mean `question`\?\)"
    ):
        check_renames({"qestion": "prompt"}, [{"question": 1, "id": 2}])


def test_the_run_file_names_the_schemas_that_rows_can_be_converted_to():
    assert DataConfig().convert is None
    allowed = {schema for schema in SCHEMAS if schema != "tokenized"}
    assert {DataConfig(convert=schema).convert for schema in allowed} == allowed
    with pytest.raises(ValueError, match="convert"):
        DataConfig(convert="tokenized")
