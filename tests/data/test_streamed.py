"""Batches of a dataset that is streamed: those of the rows, and the same ones when a run goes on."""

from __future__ import annotations

import json

import pytest
from templates import KINDS, tokenizer_of

from agentrl.config import RunConfig
from agentrl.data.prepare import prepare
from agentrl.data.streamed import AHEAD, StreamedBatches
from agentrl.errors import ConfigError

TOKENIZER = tokenizer_of(KINDS["chatml"])


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(dataset, *, batch_size=4, **data):
    where = {"dataset": dataset} if isinstance(dataset, str) else {"datasets": dataset}
    return RunConfig(model="unused", steps=9, batch_size=batch_size, data={"streaming": True, **data}, **where)


def ids_of(examples):
    return [[text.ids.tolist() for text in one.texts] for one in examples]


PLAIN = [{"text": f"row {number}"} for number in range(30)]
PAIRS = [{"prompt": f"row {number}", "chosen": " a", "rejected": " b"} for number in range(30)]


def test_the_batches_are_the_rows_each_once_a_pass(tmp_path):
    config = config_of(written(tmp_path / "a.jsonl", PLAIN), batch_size=10)
    batches = StreamedBatches(config, "supervised", TOKENIZER)
    whole = ids_of(prepare(config, "supervised", TOKENIZER))
    first = [one for step in range(3) for one in ids_of(batches.take(step))]
    assert sorted(first) == sorted(whole)
    assert first != whole
    again = [one for step in range(3, 6) for one in ids_of(batches.take(step))]
    assert sorted(again) == sorted(whole)
    assert again != first
    assert batches.tally.read >= 60
    in_order = StreamedBatches(config_of(config.dataset, batch_size=10, shuffle=False), "supervised", TOKENIZER)
    assert ids_of(in_order.take(0)) == whole[:10]


@pytest.mark.parametrize("stopped", [0, 1, 3, 7, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_a_run_that_goes_on_takes_what_it_would_have_taken(stopped, batch_size, tmp_path):
    pairs = written(tmp_path / "pairs.jsonl", PAIRS)
    single = written(tmp_path / "single.jsonl", [{"prompt": "x", "completion": f" {number}", "label": True} for number in range(11)])
    config = config_of([{"dataset": pairs, "weight": 2.0}, {"dataset": single, "weight": 1.0}], batch_size=batch_size)
    straight = StreamedBatches(config, "unpaired", TOKENIZER)
    expected = [ids_of(straight.take(step)) for step in range(30)]
    before = StreamedBatches(config, "unpaired", TOKENIZER)
    for step in range(stopped):
        before.take(step)
    place = json.loads(json.dumps(before.place_of(stopped)))
    after = StreamedBatches(config, "unpaired", TOKENIZER)
    after.go_on(stopped, place)
    assert [ids_of(after.take(step)) for step in range(stopped, 30)] == expected[stopped:]
    assert after.counts == straight.counts
    assert after.epoch(30) == straight.epoch(30)
    assert after.place_of(30) == straight.place_of(30)
    from_the_start = StreamedBatches(config, "unpaired", TOKENIZER)
    assert [ids_of(from_the_start.take(step)) for step in range(stopped, 30)] == expected[stopped:]


def test_going_on_reads_no_rows_again_but_the_few_that_were_read_together(tmp_path):
    rows = [{"text": None} if number % 5 == 0 else {"text": f"row {number}"} for number in range(300)]
    config = config_of(written(tmp_path / "a.jsonl", rows), batch_size=8, on_bad_row="skip")
    straight, after = (StreamedBatches(config, "supervised", TOKENIZER) for _ in range(2))
    for step in range(100):
        straight.take(step)
    after.go_on(99, straight.place_of(99))
    after.take(99)
    assert straight.tally.read >= 1000
    assert after.tally.read <= 2 * AHEAD
    assert after.counts == straight.counts
    assert after.counts["data/skipped"] >= 200
    assert after.epoch(100) == straight.epoch(100) == 3.0


def test_the_places_of_a_few_steps_are_known_for_one_that_looks_behind(tmp_path):
    batches = StreamedBatches(config_of(written(tmp_path / "a.jsonl", PLAIN)), "supervised", TOKENIZER)
    places = [batches.place_of(0)]
    for step in range(4):
        batches.take(step)
        places.append(batches.place_of(step + 1))
    assert [batches.place_of(step) for step in (2, 3, 4)] == places[2:]
    assert [place["used"] for place in places] == [0, 4, 8, 12, 16]


def test_bad_rows_are_skipped_and_counted_or_end_it_with_their_place(tmp_path):
    file = written(tmp_path / "a.jsonl", [*PLAIN[:3], {"text": None}, *PLAIN[3:6]])
    batches = StreamedBatches(config_of(file, batch_size=6, shuffle=False, on_bad_row="skip"), "supervised", TOKENIZER)
    assert len(batches.take(0)) == 6
    assert batches.tally.counts()["data/skipped"] >= 1
    with pytest.raises(ConfigError, match=r"a.jsonl, line 4: `text` must be text"):
        StreamedBatches(config_of(file, batch_size=6), "supervised", TOKENIZER).take(0)


def test_rows_that_are_skipped_are_told_at_the_first_and_at_each_tenfold(tmp_path):
    file = written(
        tmp_path / "a.jsonl", [{"text": f"row {number}" if number else None} for number in range(AHEAD)]
    )  # one bad row a reading
    said = []
    options = {"batch_size": AHEAD - 1, "shuffle": False, "on_bad_row": "skip"}
    batches = StreamedBatches(config_of(file, **options), "supervised", TOKENIZER, say=said.append)
    for step in range(12):
        batches.take(step)
    assert [one.splitlines()[0] for one in said if "left out" in one] == ["1 bad row left out:", "10 bad rows left out:"]


@pytest.mark.parametrize(
    ("rows", "message"), [([], "a.jsonl holds no rows"), (["{"], r"a.jsonl: none of its first 1 rows can be read: .*line 1")]
)
def test_a_stream_without_a_row_is_named(rows, message, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f"{row}\n" for row in rows))
    with pytest.raises(ConfigError, match=message):
        StreamedBatches(config_of(str(tmp_path / "a.jsonl")), "supervised", TOKENIZER)


def test_what_cannot_be_streamed_is_told(tmp_path):
    file = written(tmp_path / "a.jsonl", PLAIN)
    with pytest.raises(ConfigError, match=r"data.packing is bfd, which takes all rows, and data.streaming is true: set data.packing=none"):
        StreamedBatches(config_of(file, packing="bfd", max_length=8), "supervised", TOKENIZER)
    with pytest.raises(ConfigError, match=r"a.jsonl, line 1: .*preference"):
        StreamedBatches(config_of(file), "preference", TOKENIZER)
