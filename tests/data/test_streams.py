"""Rows read as they are needed: the same rows as when all are read, in an order of the seed's, from any place on."""

import json
from itertools import islice

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.data.faults import RowFault
from agentrl.data.sources import open_rows
from agentrl.data.streams import SourcePlace, draw, hold_out_first, open_stream
from agentrl.errors import ConfigError

datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    """Ten rows in files of each kind, in the order of their names."""
    (tmp_path / "train-0.jsonl").write_text("".join(f'{{"n": {number}}}\n' for number in range(3)))
    (tmp_path / "train-1.csv").write_text("n\n3\n4\n")
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist([{"n": number} for number in range(5, 8)]), tmp_path / "train-2.parquet", row_group_size=2)
    (tmp_path / "train-3.json").write_text('[{"n": 8}, {"n": 9}]')
    (tmp_path / "test.jsonl").write_text('{"n": 10}\n')
    return tmp_path


def numbers(stream, start=0):
    return [int(row["n"]) for _, row in stream.scan(start)]


@pytest.mark.parametrize(
    "query", ["", "?split=train[2:6]", "?split=train[3:]", "?split=train[:4]", "?split=test", "?split=train[1:2]+test+train[:3]"]
)
def test_a_stream_has_the_rows_that_are_read_at_once_from_any_one_on(folder, query):
    rows = open_rows(f"{folder}{query}")
    stream = open_stream(f"{folder}{query}")
    whole = [(rows.where(index), rows[index]) for index in range(len(rows))]
    for start in range(len(rows) + 2):
        assert list(stream.scan(start)) == whole[start:]


def test_single_files_objects_and_saved_datasets_are_streams(folder, tmp_path):
    dataset = datasets.Dataset.from_list([{"n": 1}, {"n": 2}])
    dataset.save_to_disk(tmp_path / "saved")
    assert numbers(open_stream(tmp_path / "saved"), 1) == [2]
    assert numbers(open_stream(folder / "train-0.jsonl"), 1) == [1, 2]
    assert numbers(open_stream(folder / "train-3.json")) == [8, 9]
    assert numbers(open_stream([{"n": 1}, {"n": 2}])) == [1, 2]
    assert [type(row) for _, row in open_stream([{"n": 1}, 3]).scan()] == [dict, RowFault]


def test_a_dataset_of_the_hub_is_read_as_it_goes():
    rows = [{"messages": [{"role": "user", "content": str(number)}]} for number in range(5)]
    asked = []

    def load(path, **options):
        asked.append(options["streaming"])
        return {"train": datasets.Dataset.from_list(rows).to_iterable_dataset()}

    stream = open_stream("org/talk?split=train[1:4]", load=load)
    assert list(stream.scan(1)) == [("org/talk, row 3", rows[2]), ("org/talk, row 4", rows[3])]
    assert asked == [True]
    with pytest.raises(ConfigError, match="names several splits"):
        open_stream("org/talk?split=train+test", load=load)


def test_a_hub_that_breaks_off_is_an_error_with_the_row():
    class Broken:
        features = None

        def __iter__(self):
            yield {"n": 0}
            raise OSError("connection lost")

    stream = open_stream("org/talk", load=lambda path, **options: {"train": Broken()})
    with pytest.raises(ConfigError, match="dataset org/talk could not be read on behind row 1: connection lost"):
        numbers(stream)


@pytest.mark.parametrize("stretch", ["[:10%]", "[-2:]"])
def test_a_stretch_that_takes_the_length_is_refused(folder, stretch):
    for source in (folder, folder / "train-0.jsonl", "org/talk"):
        with pytest.raises(ConfigError, match="takes the dataset's length, which a stream does not know"):
            open_stream(f"{source}?split=train{stretch}", load=lambda path, **options: {})


def test_what_no_stream_reads_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ConfigError, match="of no known kind"):
        open_stream(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="which has no split 'test'"):
        open_stream(f"{tmp_path / 'empty.jsonl'}?split=test")
    with pytest.raises(ConfigError, match="holds no rows"):
        next(draw([open_stream(tmp_path / "empty.jsonl")], seed=0))


def objects(name, length):
    return open_stream([{"n": f"{name}{number}"} for number in range(length)])


def drawn(streams, count, **options):
    return [one.row["n"] for one in islice(draw(streams, **options), count)]


def test_each_epoch_has_every_row_once_in_another_order():
    passes = drawn([objects("", 10)], 30, seed=1, block=4)
    for epoch in range(3):
        assert sorted(passes[10 * epoch : 10 * epoch + 10]) == [str(number) for number in range(10)]
    assert sorted(passes[:4]) == ["0", "1", "2", "3"]  # a block is shuffled by itself
    assert passes[:10] != passes[10:20] != passes[20:]
    assert passes == drawn([objects("", 10)], 30, seed=1, block=4) != drawn([objects("", 10)], 30, seed=2, block=4)
    assert drawn([objects("", 3)], 7, seed=None) == ["0", "1", "2", "0", "1", "2", "0"]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 5)), min_size=1, max_size=3),
    st.integers(0, 40),
    st.integers(1, 5),
    st.none() | st.integers(0, 3),
)
def test_a_run_goes_on_from_any_place_as_if_it_had_not_stopped(parts, stopped, block, seed):
    streams = [objects(f"{number}/", length) for number, (length, _) in enumerate(parts)]
    options = {"weights": [weight for _, weight in parts], "seed": seed, "block": block}
    whole = list(islice(draw(streams, **options), 60))
    place = json.loads(json.dumps(whole[stopped - 1].place)) if stopped else None
    assert list(islice(draw(streams, place=place, **options), 60 - stopped)) == whole[stopped:]


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=4))
def test_each_dataset_has_its_share_at_every_moment(weights):
    streams = [objects(f"{number}/", 3) for number in range(len(weights))]
    for count, one in enumerate(islice(draw(streams, weights, seed=0), 60), start=1):
        for place, weight in zip(one.place, weights, strict=True):
            assert abs(place.taken - count * weight / sum(weights)) < len(weights)
        assert one.row["n"].startswith(f"{one.source}/")


def test_faults_are_drawn_like_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 0}\nx\n{"n": 2}\n')
    found = list(islice(draw([open_stream(path)], seed=3), 3))
    assert sorted(one.where for one in found if isinstance(one.row, RowFault)) == [f"{path}, line 2"]
    assert found[-1].place == (SourcePlace(taken=3, epoch=0, row=3),)


def test_the_first_rows_are_held_out_with_their_contents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('x\n{"n": 0}\n{"n": 1}\n{"n": 0}\n')
    rows, contents = hold_out_first(open_stream(path), 2)
    assert [(rows.where(index), rows[index]) for index in range(2)] == [(f"{path}, line 2", {"n": 0}), (f"{path}, line 3", {"n": 1})]
    assert len(contents) == 2
    with pytest.raises(ConfigError, match=r"data\.eval_rows is 4, and the dataset that is streamed holds 3 rows"):
        hold_out_first(open_stream(path), 4)
