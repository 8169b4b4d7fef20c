"""A run's dataset as tokenized rows: counted, told about, the same again, and in the order of an epoch."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from templates import CHATML, KINDS, tokenizer_of

from agentrl.config import RunConfig
from agentrl.config_data import DataConfig
from agentrl.data.prepare import prepare, prepare_rows
from agentrl.data.rows import ObjectRows
from agentrl.data.table import TableWriter
from agentrl.errors import ConfigError

TOKENIZER = tokenizer_of(KINDS["chatml"])
ROWS = [{"prompt": f"row {number} ", "completion": "as" * (1 + number % 5)} for number in range(40)]


def written(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def run_config(**options):
    return RunConfig(model="unused", **options)


def of_rows(rows, kind="supervised", say=lambda _: None, **data):
    return prepare_rows(ObjectRows(rows), DataConfig(**data), kind, TOKENIZER, say=say)


def text(example):
    return TOKENIZER.decode(example.texts[0].ids)


def test_rows_of_a_file_become_examples_with_their_places(tmp_path):
    file = written(tmp_path / "train.jsonl", ROWS)
    found = prepare(run_config(dataset=file), "supervised", TOKENIZER)
    assert [text(one) for one in found] == [f"{row['prompt']}{row['completion']}<|im_end|>" for row in ROWS]
    assert found.schema == "standard prompt_completion"
    assert found[16].where == f"{file}, line 17"
    assert found[2:4][1].where == f"{file}, line 4"
    assert found.counts == {
        "data/rows": 40.0,
        "data/read": 40.0,
        "data/skipped": 0.0,
        "data/truncated": 0.0,
        "data/dropped_long": 0.0,
        "data/tokens": float(sum(one.num_tokens for one in found)),
        "data/trained_tokens": float(sum(one.num_trained for one in found)),
    }


def test_a_dataset_that_the_objective_does_not_take_is_named(tmp_path):
    file = written(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"train\.jsonl, line 1: the dataset has .* prompt_completion rows.*learns from preference data"):
        prepare(run_config(dataset=file), "preference", TOKENIZER)


def test_the_fingerprint_is_of_the_content():
    one, same, other = of_rows(ROWS), of_rows(ROWS), of_rows([*ROWS[:-1], {**ROWS[-1], "completion": "other"}])
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert of_rows(ROWS, completion_only=False).fingerprint != one.fingerprint
    assert of_rows([{**row, "weight": 2.0} for row in ROWS]).fingerprint != one.fingerprint


BAD = [
    ROWS[0],
    {"prompt": "a", "completion": None},
    "{'not': json}",
    {"prompt": "b", "completion": ""},
    {"text": "another schema"},
    ROWS[1],
]


def test_the_first_bad_row_ends_it_naming_file_line_and_field(tmp_path):
    file = written(tmp_path / "train.jsonl", BAD)
    with pytest.raises(ConfigError, match=r"train.jsonl, line 2: `completion` must be text that is not empty, got null; .*on_bad_row=skip"):
        prepare(run_config(dataset=file), "supervised", TOKENIZER)


def test_bad_rows_are_counted_where_they_are_skipped_and_the_first_are_told(tmp_path):
    file = written(tmp_path / "train.jsonl", BAD)
    said = []
    found = prepare(run_config(dataset=file, data={"on_bad_row": "skip"}), "supervised", TOKENIZER, say=said.append)
    assert [text(one) for one in found] == ["row 0 as<|im_end|>", "row 1 asas<|im_end|>"]
    assert (found.counts["data/skipped"], found.counts["data/rows"], found.counts["data/read"]) == (4.0, 2.0, 6.0)
    summary = next(line for line in said if "left out" in line)
    for part in ("4 bad rows left out", "line 2: `completion`", "line 3", "line 4: `completion`", "line 5"):
        assert part in summary


def test_a_template_that_refuses_a_row_is_that_row_s_fault():
    tokenizer = tokenizer_of(KINDS["turns"])  # whose roles alternate
    asked, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = ObjectRows([{"messages": [asked, answer]}, {"messages": [asked, asked, answer]}])
    with pytest.raises(
        ConfigError, match=r"the dataset, row 2: `messages` must be .*refused messages of roles user, user, assistant.*alternate"
    ):
        prepare_rows(rows, DataConfig(), "supervised", tokenizer)
    assert len(prepare_rows(rows, DataConfig(on_bad_row="skip"), "supervised", tokenizer)) == 1


def test_long_rows_are_counted_and_told():
    said = []
    rows = [{"prompt": "ab", "completion": "c"}, {"prompt": "abcdef", "completion": "ghi"}, {"prompt": "abcdefghijk", "completion": "l"}]
    kept = of_rows(rows, say=said.append, max_length=8, long_rows="keep_start")
    assert (kept.counts["data/truncated"], kept.counts["data/dropped_long"], len(kept)) == (1.0, 1.0, 2)
    assert any("1 row left out: longer than data.max_length" in line for line in said)
    assert any("1 row cut to data.max_length" in line for line in said)
    with pytest.raises(ConfigError, match=r"the dataset, row 2: the row must be at most 8 tokens \(data.max_length\), got 10"):
        of_rows(rows, max_length=8)
    assert of_rows(rows, max_length=8, on_bad_row="skip").counts["data/skipped"] == 2.0


def test_the_model_s_own_length_holds_where_none_is_named():
    rows = ObjectRows([{"text": "abcdefgh"}])
    with pytest.raises(ConfigError, match=r"at most 4 tokens"):
        prepare_rows(rows, DataConfig(), "supervised", TOKENIZER, positions=4)
    with pytest.raises(ConfigError, match=r"data.max_length is 8, and the model takes at most 4 tokens: lower it"):
        prepare_rows(rows, DataConfig(max_length=8), "supervised", TOKENIZER, positions=4)


@pytest.mark.parametrize(
    ("rows", "data", "said"),
    [
        ([{"text": "abcdefgh"}] * 2, {"max_length": 4, "long_rows": "drop"}, r"no row is left of the 2 in the dataset: 2 are longer"),
        ([{"text": ""}] * 3, {"on_bad_row": "skip"}, r"no row is left of the 3 in the dataset: 3 are wrong \(the dataset, row 1: `text`"),
    ],
)
def test_a_dataset_of_which_nothing_is_left_says_why(rows, data, said):
    with pytest.raises(ConfigError, match=said):
        of_rows(rows, **data)


def test_rows_that_the_objective_does_not_take_are_refused_with_the_conversion():
    with pytest.raises(ConfigError, match=r"preference.*supervised"):
        of_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    found = of_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], convert="prompt_completion")
    assert text(found[0]) == "ab<|im_end|>"


def test_a_pair_becomes_two_rows_for_what_learns_from_single_ones():
    found = of_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], "unpaired")
    assert [(text(one), one.rewards, one.where) for one in found] == [
        ("ab<|im_end|>", (1.0,), "the dataset, row 1"),
        ("ac<|im_end|>", (0.0,), "the dataset, row 1"),
    ]


def test_pairs_keep_their_numbers_and_steps_their_labels():
    pairs = of_rows(
        [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}, {"prompt": "a", "chosen": "b", "rejected": "d"}], "preference"
    )
    assert [dict(one.parts) for one in pairs] == [{"margin": 2.0}, {}]
    assert [one.rewards for one in pairs] == [(1.0, 0.0)] * 2
    (steps,) = of_rows([{"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}], "stepwise")
    assert [label for label in steps.texts[0].labels.tolist() if label == label] == [1.0, 0.0]


def test_columns_are_renamed_and_a_template_is_taken_from_a_file(tmp_path):
    found = of_rows([{"question": "a", "answer": "b"}], columns={"question": "prompt", "answer": "completion"})
    assert text(found[0]) == "ab<|im_end|>"
    file = tmp_path / "template.jinja"
    file.write_text(CHATML.replace("assistant", "helper"))
    chat = [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}]
    assert of_rows(chat, chat_template=str(file)).counts["data/rows"] == 1
    assert TOKENIZER.chat_template == CHATML
    with pytest.raises(ConfigError, match=r"data.chat_template is no.jinja, and that file cannot be read"):
        of_rows(chat, chat_template="no.jinja")


def test_held_out_rows_are_not_trained_on(tmp_path):
    config = run_config(dataset=written(tmp_path / "all.jsonl", ROWS + ROWS[:5]), data={"eval_rows": 6})
    train, held = (prepare(config, "supervised", TOKENIZER, split) for split in ("train", "eval"))
    assert len(held) == 6
    assert not {text(one) for one in train} & {text(one) for one in held}
    assert {text(one) for one in train} | {text(one) for one in held} == {text(one) for one in of_rows(ROWS)}
    with pytest.raises(ConfigError, match=r"nothing to evaluate on: name an eval_dataset, or hold rows out with data.eval_rows"):
        prepare(run_config(dataset=config.dataset), "supervised", TOKENIZER, "eval")


def test_an_evaluation_dataset_of_its_own(tmp_path):
    config = run_config(dataset=written(tmp_path / "a.jsonl", ROWS), eval_dataset=written(tmp_path / "b.jsonl", [{"text": "as you"}]))
    assert [text(one) for one in prepare(config, "supervised", TOKENIZER, "eval")] == ["as you<|im_end|>"]
    assert len(prepare(config, "supervised", TOKENIZER)) == 40


def test_several_datasets_of_several_schemas_have_their_shares(tmp_path):
    plain = written(tmp_path / "plain.jsonl", [{"text": f"plain {number}"} for number in range(10)])
    pairs = written(tmp_path / "pairs.jsonl", ROWS)
    shares = [{"dataset": plain, "weight": 3.0}, {"dataset": pairs, "weight": 1.0}]
    found = prepare(run_config(datasets=shares), "supervised", TOKENIZER)
    assert (len(found), found.counts["data/rows"]) == (50, 50.0)
    assert found.schema == "standard language_modeling, standard prompt_completion"
    assert (text(found[9]), text(found[10])) == ("plain 9<|im_end|>", "row 0 as<|im_end|>")
    drawn = Counter("plain" in text(found[int(at)]) for at in found.order(0, 0))
    assert drawn == {True: 38, False: 12}
    assert np.array_equal(found.order(0, 1), found.order(0, 1))
    assert not np.array_equal(found.order(0, 0), found.order(0, 1))
    without = of_rows(ROWS)
    assert len(without) == 40
    held = prepare(run_config(datasets=shares, data={"eval_rows": 20}), "supervised", TOKENIZER, "eval")
    assert len(held) == 20


def test_an_epoch_of_one_dataset_has_each_row_once(tmp_path):
    found = prepare(run_config(dataset=written(tmp_path / "a.jsonl", ROWS)), "supervised", TOKENIZER)
    assert sorted(found.order(3, 1).tolist()) == list(range(40))
    assert found.order(None, 1).tolist() == list(range(40))


def test_long_columns_lie_in_a_file_and_read_the_same():
    small, large = TableWriter(), TableWriter(spill_bytes=100)  # each closed by what is asked for below
    examples = list(of_rows(ROWS))
    for writer in (small, large):
        for start in range(0, 40, 7):
            writer.add([(one, [start + at]) for at, one in enumerate(examples[start : start + 7])])
    one, other = (writer.examples(lambda row: f"row {row}", {}) for writer in (small, large))
    assert isinstance(other._columns["ids"], np.memmap)
    assert one.fingerprint == other.fingerprint
    assert [text(example) for example in one] == [text(example) for example in other] == [text(example) for example in examples]
    assert one.lengths.tolist() == [example.num_tokens for example in examples]
    with pytest.raises(ValueError, match="read-only"):
        other[0].texts[0].ids[0] = 1
