"""Parquet and `datasets`: nested columns, and what Arrow fills in."""

import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_strategies import arguments

from agentrl.data.arrow_rows import ArrowRows, read_parquet, scan_parquet
from agentrl.data.faults import RowFault
from agentrl.errors import ConfigError

datasets.disable_progress_bars()
STRUCTS = [
    {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f", "p": {"a": 1}}], "n": None},
    {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 2}}}]},
            {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "g", "arguments": {"b": [1]}}}]},
        ],
        "tools": [{"name": "g", "p": {"b": 1}}],
        "n": 3,
    },
]


def json_features():
    call = {"function": {"name": datasets.Value("string"), "arguments": datasets.Json()}}
    message = {"role": datasets.Value("string"), "content": datasets.Value("string"), "tool_calls": datasets.List(call)}
    return datasets.Features({"messages": datasets.List(message)})


def parquet_of(path, dataset, rows_a_group=None):
    from pyarrow import parquet

    parquet.write_table(dataset.data.table, path, row_group_size=rows_a_group)
    return path


def test_the_keys_that_arrow_merged_are_taken_apart_again_and_it_is_said(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", datasets.Dataset.from_list(STRUCTS))
    rows = read_parquet(path)
    assert list(rows) == STRUCTS
    (notice,) = rows.notices
    assert f"{path}: Arrow gave the objects in `messages`, `tools` each other's keys" in notice
    assert "JSON lines, keep what was written" in notice
    assert rows.where(1) == f"{path}, row 2"


def test_a_null_that_was_written_into_such_a_column_cannot_be_told_and_is_left_out():
    row = {
        "messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": None, "b": 1}}}]}]
    }
    (read,) = ArrowRows(datasets.Dataset.from_list([row]), "x")
    assert read["messages"][0]["tool_calls"][0]["function"]["arguments"] == {"b": 1}


def test_columns_of_messages_alone_and_columns_that_are_none_stay_as_they_are():
    rows = ArrowRows(
        datasets.Dataset.from_list([{"messages": [{"role": "user", "content": "a"}], "meta": {"a": 1}}, {"meta": {"b": 2}}]), "x"
    )
    assert not rows.notices
    assert rows[0] == {"messages": [{"role": "user", "content": "a"}], "meta": {"a": 1, "b": None}}


@settings(max_examples=25)
@given(st.lists(arguments, min_size=1, max_size=4))
def test_a_column_of_json_keeps_what_was_written(tmp_path_factory, given_arguments):
    objects = [
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": one}}]}]}
        for one in given_arguments
    ]
    dataset = datasets.Dataset.from_list(objects, features=json_features())
    folder = tmp_path_factory.mktemp("json")
    for rows in (ArrowRows(dataset, "x"), read_parquet(parquet_of(folder / "a.parquet", dataset))):
        read = [row["messages"][0]["tool_calls"][0]["function"]["arguments"] for row in rows]
        assert [json.dumps(one) for one in read] == [json.dumps(one) for one in given_arguments]


def test_rows_are_read_in_any_order(tmp_path):
    dataset = datasets.Dataset.from_list([{"n": number} for number in range(600)])
    rows = ArrowRows(dataset, "x")
    order = [*range(300), 5, 599, *range(100, 400), 0]
    assert [rows[index]["n"] for index in order] == order
    with pytest.raises(IndexError):
        rows[600]
    path = parquet_of(tmp_path / "a.parquet", dataset, rows_a_group=250)
    assert [row["n"] for row in read_parquet(path)] == list(range(600))
    assert list(scan_parquet(path, 249)) == [(f"{path}, row {number + 1}", {"n": number}) for number in range(249, 600)]
    with pytest.raises(StopIteration) as end:
        next(scan_parquet(path, 600))
    assert end.value.value == 600


def test_a_row_that_cannot_be_decoded_is_a_fault_of_its_own(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = [b"a", b"\xff", b"b", *[b"c"] * 300, b"\xfe"]
    array = pyarrow.array(texts, type=pyarrow.binary()).view(pyarrow.string())
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": array}), path)
    rows = read_parquet(path)
    for order in (range(len(rows)), [303, 1, 0]):
        for index in order:
            if index in {1, 303}:
                with pytest.raises(
                    RowFault, match=rf"a\.parquet, row {index + 1}: the row must be one that `datasets` can decode, got UnicodeDecodeError"
                ):
                    rows[index]
            else:
                assert rows[index] == {"text": texts[index].decode()}
    scanned = list(scan_parquet(path, 1))
    assert [(index, row.where) for index, (_, row) in enumerate(scanned) if isinstance(row, RowFault)] == [
        (0, f"{path}, row 2"),
        (302, f"{path}, row 304"),
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1junk", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the dataset .*a\.parquet as Parquet: "):
        read_parquet(path)
    with pytest.raises(ConfigError, match=r"cannot read the dataset .*a\.parquet as Parquet: "):
        list(scan_parquet(path))
