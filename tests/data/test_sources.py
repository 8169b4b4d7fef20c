"""Where rows come from: files, folders, what `datasets` saved, the Hub, and Python objects."""

import json
import os

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_strategies import rows as any_row

from agentrl.data.faults import RowFault
from agentrl.data.sources import open_rows
from agentrl.data.specs import DatasetSpec, SplitPart
from agentrl.errors import ConfigError

datasets.disable_progress_bars()


def lines(*numbers):
    return "".join(f'{{"n": {number}}}\n' for number in numbers)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-0.jsonl").write_text(lines(0, 1, 2))
    (tmp_path / "train-1.jsonl").write_text(lines(3, 4))
    (tmp_path / "validation.csv").write_text("n\n5\n")
    (tmp_path / "test.json").write_text('[{"n": 6}, {"n": 7}]')
    (tmp_path / "README.md").write_text("data")
    (tmp_path / "dataset_info.json").write_text("{}")
    return tmp_path


def numbers(source, **options):
    return [int(row["n"]) for row in open_rows(source, **options)]


@pytest.mark.parametrize(
    ("query", "split", "expected"),
    [
        ("", "train", [0, 1, 2, 3, 4]),
        ("", "eval", [5]),
        ("?split=test", "train", [6, 7]),
        ("?split=train[:2]", "train", [0, 1]),
        ("?split=train[-2:]", "train", [3, 4]),
        ("?split=train[20%:60%]", "train", [1, 2]),
        ("?split=[3:]", "train", [3, 4]),
        ("?split=[:1]", "eval", [5]),
        ("?split=train[4:]+test[:1]+validation", "train", [4, 6, 5]),
        ("?split=train[:99]", "eval", [0, 1, 2, 3, 4]),
    ],
)
def test_a_folder_has_its_files_as_splits(folder, query, split, expected):
    assert numbers(f"{folder}{query}", split=split) == expected


def test_a_row_of_a_folder_knows_its_file(folder):
    rows = open_rows(f"{folder}?split=train[2:]")
    assert [rows.where(index) for index in range(2)] == [f"{folder}/train-0.jsonl, line 3", f"{folder}/train-1.jsonl, line 1"]
    with pytest.raises(IndexError):
        rows[3]


def test_splits_may_be_folders_or_lie_in_data(tmp_path):
    for name, number in (("train", 1), ("test", 2)):
        (tmp_path / "a" / name).mkdir(parents=True)
        (tmp_path / "a" / name / "rows.jsonl").write_text(lines(number))
    assert (numbers(tmp_path / "a"), numbers(tmp_path / "a", split="eval")) == ([1], [2])
    (tmp_path / "b" / "data").mkdir(parents=True)
    (tmp_path / "b" / "data" / "train-00000-of-00001.jsonl").write_text(lines(3))
    assert numbers(tmp_path / "b") == [3]


def test_a_folder_in_which_no_name_is_a_split_is_for_training(tmp_path):
    (tmp_path / "b.jsonl").write_text(lines(2))
    (tmp_path / "a.jsonl").write_text(lines(1))
    (tmp_path / "trainer.jsonl").write_text(lines(3))
    assert numbers(tmp_path) == [1, 2, 3]
    with pytest.raises(ConfigError, match="has no split for evaluation; there are train: name one"):
        open_rows(tmp_path, split="eval")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?split=dev", r"has no split 'dev'; there are test, train, validation: name one, as in .*\?split=test"),
        ("?splt=test", r"`splt` is not known \(did you mean split\?\); behind the path stand split=\.\.\., name="),
        ("?split=", "`split` has no value"),
        ("?split=a&split=b", "`split` is given twice"),
        ("?split=train[1]", r"split 'train\[1\]' is not of the form"),
        ("?split=train[a:]", "is not of the form"),
        ("?split=train++test", "is not of the form"),
        ("?name=x", "only datasets on the Hub have a `name`"),
        ("?split=train[7:]", "holds no rows"),
    ],
)
def test_a_spec_that_asks_for_what_is_not_there_is_refused(folder, query, message):
    with pytest.raises(ConfigError, match=message):
        open_rows(f"{folder}{query}")


def test_a_path_with_a_question_mark_is_taken_as_it_is(tmp_path):
    path = tmp_path / "what?.jsonl"
    path.write_text(lines(1))
    assert numbers(path) == [1]
    assert DatasetSpec.parse("a?split=train%5B:5%5D&name=c&revision=r") == DatasetSpec(
        text="a?split=train%5B:5%5D&name=c&revision=r", path="a", split=(SplitPart(name="train", stop="5"),), name="c", revision="r"
    )


def test_a_file_has_no_splits_but_stretches(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1, 2, 3))
    assert numbers(f"{path}?split=train[1:]", split="eval") == [2, 3]
    with pytest.raises(ConfigError, match="is one file, which has no split 'test'"):
        open_rows(f"{path}?split=test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "a,b\n", "holds no rows"),
        ("a.csv", "", "holds no rows"),
        ("a.txt", "x", r"its name ends in '\.txt', and rows are read from \.jsonl, .*\.parquet"),
        ("a", "x", "its name has no ending"),
        ("a.parquet.gz", "x", "is of no known kind"),
    ],
)
def test_an_empty_or_unknown_file_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        open_rows(path)


def test_what_is_not_there_is_refused_with_how_far_the_path_goes(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=rf"there is no dataset .*: no such file or folder \(the folder {tmp_path} is there\)"):
        open_rows(tmp_path / "x" / "train.jsonl")
    with pytest.raises(ConfigError, match="no such file or folder"):
        open_rows("train.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"there is no dataset empty/train: .* \(the folder .*/empty is there\)"):
        open_rows("empty/train")  # one level deep, as names on the Hub are
    with pytest.raises(ConfigError, match="holds no dataset: files ending in"):
        open_rows(tmp_path / "empty")
    with pytest.raises(ConfigError, match="names no file, folder or Hub dataset"):
        open_rows(" ?split=train")


def test_what_datasets_saved_is_read(tmp_path):
    dataset = datasets.Dataset.from_list([{"n": 1}, {"n": 2}])
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "two")
    assert numbers(tmp_path / "one") == [1, 2]
    assert numbers(f"{tmp_path / 'one'}?split=[1:]") == [2]
    assert (numbers(tmp_path / "two"), numbers(tmp_path / "two", split="eval")) == ([1, 2], [2])
    with pytest.raises(ConfigError, match="has no splits, and 'test' is asked for"):
        open_rows(f"{tmp_path / 'one'}?split=test")
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read the dataset that `datasets` saved in"):
        open_rows(tmp_path / "one")


def test_a_name_that_is_no_file_is_loaded_from_the_hub():
    asked = []

    def load(path, **options):
        asked.append((path, options))
        return datasets.DatasetDict(train=datasets.Dataset.from_list([{"n": 1}, {"n": 2}]))

    rows = open_rows("org/talk?name=en&revision=v1&split=train[1:]", load=load)
    assert list(rows) == [{"n": 2}]
    assert rows.where(0) == "org/talk, row 2"
    assert asked == [("org/talk", {"name": "en", "revision": "v1", "streaming": False})]
    with pytest.raises(ConfigError, match="has no split for evaluation; there are train"):
        open_rows("org/talk", split="eval", load=load)


def test_what_the_hub_does_not_give_is_refused_with_what_it_said():
    def load(path, **options):
        raise FileNotFoundError("Dataset 'org/talk' doesn't exist on the Hub\nor cannot be accessed")

    with pytest.raises(
        ConfigError, match="is no file or folder here, and could not be loaded from the Hub: FileNotFoundError: Dataset 'org/talk' doesn't"
    ):
        open_rows("org/talk", load=load)


def test_python_objects_are_rows():
    rows = open_rows({"n": number} for number in range(3))
    assert [row["n"] for row in rows] == [0, 1, 2]
    assert rows.where(2) == "the dataset, row 3"
    assert list(open_rows(datasets.Dataset.from_list([{"n": 1}]))) == [{"n": 1}]
    for wrong, message in (([], "holds no rows"), ({"n": [1]}, "got one dict")):
        with pytest.raises(ConfigError, match=message):
            open_rows(wrong)
    with pytest.raises(RowFault, match="the dataset, row 1: the row must be an object with columns, got the number 3"):
        open_rows([3])[0]
    with pytest.raises(RowFault, match="whose keys are names"):
        open_rows([{1: 2}])[0]
    with pytest.raises(RowFault, match="the dataset, row 1: the row must be text of whole characters"):
        open_rows([{"text": "a\udc00"}])[0]


@settings(max_examples=50)
@given(st.lists(any_row().map(lambda drawn: drawn[0]), min_size=1, max_size=3))
def test_rows_of_every_schema_keep_their_bytes(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "b.json"):
        assert [json.dumps(row) for row in open_rows(folder / name)] == [json.dumps(row) for row in rows]


def test_numbers_of_numpy_are_numbers_in_lists_too():
    row = {"label": np.bool_(True), "labels": [np.bool_(True), np.bool_(False)], "input_ids": (np.int64(3),), "ids": np.array([[1]])}
    assert repr(open_rows([row])[0]) == repr({"label": True, "labels": [True, False], "input_ids": [3], "ids": [[1]]})


def test_a_pipe_is_no_dataset(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"is a pipe or a device, .* write it to a file first"):
        open_rows(str(tmp_path / "a.jsonl"))
