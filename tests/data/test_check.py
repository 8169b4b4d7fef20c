"""What `agentrl data check` says of a dataset."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from templates import KINDS, tokenizer_of
from typer.testing import CliRunner

from agentrl.cli import make_app
from agentrl.config_data import DataConfig
from agentrl.data.check import check_dataset, lengths_of
from agentrl.data.check_view import laid_out
from agentrl.data.rows import ObjectRows

TOKENIZER = tokenizer_of(KINDS["chatml"])
CHAT = [
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "as you"}]},
    {"messages": [{"role": "user", "content": "hello hello hello"}, {"role": "assistant", "content": "a"}]},
]


def checked(rows, *, tokenizer=TOKENIZER, kind=None, shown=3, **data):
    return check_dataset(ObjectRows(rows), DataConfig(**data), name="rows", tokenizer=tokenizer, kind=kind, shown=shown)


def printed(report, *, colours=False):
    out = io.StringIO()
    console = Console(
        file=out, width=200, force_terminal=colours, color_system="standard" if colours else None, highlight=False, markup=False
    )
    for part in laid_out(report, colours=colours):
        console.print(part)
    return out.getvalue()


def test_rows_are_shown_with_what_is_trained_in_brackets():
    said = printed(checked(CHAT, assistant_only=True, shown=1))
    assert "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[as you<|im_end|>]]" in said
    assert "-- the dataset, row 1: " in said
    assert "row 2" not in said
    assert "conversational language_modeling" in said


def test_on_a_terminal_it_is_in_colour_and_without_brackets():
    said = printed(checked(CHAT, assistant_only=True, shown=1), colours=True)
    assert "\x1b[1;32mas you<|im_end|>" in said
    assert "[[" not in said


def test_the_texts_of_a_pair_and_the_labels_of_steps_are_named():
    said = printed(checked([{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}]))
    assert "row 1 chosen, margin 2: 3 tokens, 2 trained, prompt of 1" in said
    assert "a[[c<|im_end|>]]" in said
    steps = printed(checked([{"prompt": "a", "completions": ["b", "c"], "labels": [1, 0]}]))
    assert "ab[[\n <label 1>]]c[[\n <label 0>]]" in steps
    assert "label 0: " in printed(checked([{"prompt": "a", "completion": "b", "label": False}]))


def test_schemas_and_what_they_can_become_are_known_without_a_model():
    report = checked([{"prompt": "a", "chosen": "b", "rejected": "c"}], tokenizer=None)
    assert (report.schema, report.kind, report.faulty) == ("standard preference", "preference", 0)
    assert "prompt_completion" in report.becomes
    assert "no offline objective" in printed(checked([{"prompt": "a"}], tokenizer=None))
    assert report.lengths is None


def test_faults_are_counted_by_kind_and_the_first_are_told():
    rows = [*CHAT, {"messages": []}, {"messages": None}, {"messages": []}]
    for tokenizer in (None, TOKENIZER):
        report = checked(rows, tokenizer=tokenizer)
        assert report.faulty == 3
        assert sorted(report.fault_kinds.values()) == [1, 2]
        assert report.faults[0].startswith("the dataset, row 3: `messages` must be at least one message")
        said = printed(report)
        assert "3 of 5 rows" in said
        assert "2 x messages: expected at least one message" in said


def test_lengths_are_those_of_all_rows_and_what_is_left_out_is_told():
    rows = [{"text": "abc"}, {"text": "abcdefgh"}, {"text": "abcdefghijkl"}]
    report = checked(rows, max_length=9, long_rows="drop")
    assert report.lengths.percentiles == {50: 9, 90: 13, 99: 13, 100: 13}
    assert report.lengths.trained[100] == 12
    assert (report.counts["data/rows"], report.counts["data/dropped_long"], report.faulty) == (2.0, 1.0, 0)
    assert "1 left out as too long" in printed(report)
    assert "1 cut to data.max_length" in printed(checked(rows, max_length=9, long_rows="keep_start"))
    assert checked(rows, max_length=9).faulty == 1  # as a run would stop at it
    assert checked(rows, max_length=9).lengths == report.lengths


@pytest.mark.parametrize("lengths", [[5], [5, 5, 5], [1, 2], list(range(1, 200)), [1, 100_000]])
def test_the_histogram_has_every_text_once(lengths):
    found = lengths_of([(length, length - 1) for length in lengths])
    assert sum(count for _, _, count in found.bins) == len(lengths)
    assert (found.bins[0][0], found.bins[-1][1]) == (min(lengths), max(lengths))
    assert all(low <= high for low, high, _ in found.bins)
    assert len(found.bins) <= 12


def run(*words):
    def unused(*_, **__):
        raise AssertionError

    return CliRunner().invoke(make_app(unused, unused), ["data", "check", *map(str, words)])


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_says_it_in_words_and_in_json(tmp_path):
    file = written(tmp_path / "chat.jsonl", CHAT)
    done = run(file, "--model", "quickstart", "--set", "data.assistant_only=true", "--rows", 1)
    assert done.exit_code == 0, done.output
    assert "[[as you<|end|>]]" in done.output
    facts = json.loads(run(file, "--json").output)
    assert (facts["rows"], facts["schema"], facts["faulty"]) == (2, "conversational language_modeling", 0)


def test_the_command_exits_with_2_where_rows_are_wrong_or_do_not_fit(tmp_path):
    file = written(tmp_path / "chat.jsonl", [*CHAT, {"messages": []}])
    assert run(file).exit_code == 2
    assert "chat.jsonl, line 3: `messages` must be at least one message" in run(file, "--model", "quickstart").output
    for words, said in [
        ((file, "--objective", "dpo"), "learns from preference data"),
        ((file, "--objective", "grpo"), "dataset"),
        ((file, "--set", "data.max_len=3"), "data.max_len"),
        ((tmp_path / "none.jsonl",), "none.jsonl"),
    ]:
        failed = run(*words)
        assert failed.exit_code == 2
        assert said in failed.output


def test_training_takes_what_a_wrong_row_does_as_a_flag(tmp_path):
    file = written(tmp_path / "chat.jsonl", CHAT)

    def unused(*_, **__):
        raise AssertionError

    words = ["train", "--model", "quickstart", "--objective", "sft", "--dataset", str(file), "--print-config", "--on-bad-row"]
    assert "on_bad_row: skip" in CliRunner().invoke(make_app(unused, unused), [*words, "skip"]).output
    wrong = CliRunner().invoke(make_app(unused, unused), [*words, "ignore"])
    assert wrong.exit_code == 2
    assert "it must be one of error, skip" in wrong.output
