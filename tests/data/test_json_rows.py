"""JSON lines and JSON files: every row as it was written, and what is wrong with a file by line and column."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import json_values, texts

from agentrl.data.faults import RowFault
from agentrl.data.json_rows import JsonLines, parsed, read_json, scan_lines
from agentrl.errors import ConfigError


@pytest.fixture
def written(tmp_path):
    """Writes a file and gives its path."""

    def write(name, content):
        path = tmp_path / name
        content = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@given(st.lists(st.dictionaries(texts, json_values, max_size=3), min_size=1, max_size=4), st.booleans())
def test_rows_come_back_byte_for_byte(tmp_path_factory, objects, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(one, ensure_ascii=ascii_only) for one in objects]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    rows = JsonLines(path)
    assert [json.dumps(row, ensure_ascii=ascii_only) for row in rows] == lines
    assert [row for _, row in scan_lines(path)] == objects


def test_keys_of_different_rows_are_not_merged(written):
    objects = [{"arguments": {"a": 1}}, {"arguments": {"b": 2}}, {"arguments": {"b": None}}]
    content = "".join(json.dumps(one) + "\n" for one in objects)
    assert list(JsonLines(written("a.jsonl", content))) == objects
    assert list(JsonLines(written("a.jsonl.gz", content))) == objects
    assert list(read_json(written("a.json", json.dumps(objects)))) == objects


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_blank_lines_are_no_rows_and_are_counted_as_lines(written, name):
    path = written(name, '\ufeff{"a": 1}\r\n\n  \n{"a": 2}')
    rows = JsonLines(path)
    assert list(rows) == [{"a": 1}, {"a": 2}]
    assert rows.where(1) == f"{path}, line 4"
    assert len(rows) == 2
    with pytest.raises(IndexError):
        rows[2]


def test_rows_are_read_in_any_order_and_are_their_own(written):
    rows = JsonLines(written("a.jsonl", '{"a": [1]}\n{"a": [2]}\n'))
    first = rows[1]
    first["a"].append(3)
    assert (rows[0], rows[1]) == ({"a": [1]}, {"a": [2]})


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b'{"a": 1,}', "column 9 (a comma before the closing bracket)"),
        (b'{"a": [1,]}', "a comma before the closing bracket"),
        (b'{"a": 1', "it ends too early"),
        (b"{'a': 1}", "column 2 (quotes in JSON are double)"),
        (b'{"a": True}', "write true, false and null as JSON does"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
        (b'{"b": {"a": 1, "a": 2}}', "the key 'a' stands twice"),
        (b'{"a": 1} {"a": 2}', "Extra data"),
        (b"[1]", "got a list of 1: [1]; a JSON array is read from a file that is called .json"),
        (b'"text"', "got the text 'text'"),
        (b"null", "got null"),
        (b'{"a": "\xff"}', "byte 0xff at offset 7, which is not UTF-8"),
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_is_no_row_is_a_fault_of_its_own(written, line, got):
    path = written("a.jsonl", b'{"a": 0}\n' + line + b'\n{"a": 3}\n')
    rows = JsonLines(path)
    assert (rows[0], rows[2]) == ({"a": 0}, {"a": 3})
    with pytest.raises(RowFault) as caught:
        rows[1]
    assert str(caught.value).startswith(f"{path}, line 2: the row must be ")
    assert got in str(caught.value)
    assert [type(row) for _, row in scan_lines(path)] == [dict, RowFault, dict]


def test_whole_surrogate_pairs_are_characters():
    assert parsed(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "it looks like UTF-16; save it as UTF-8"),
        ("a.jsonl", gzip.compress(b'{"a": 1}'), r"it looks like gzip; its name must say so \(\.gz\)"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), "byte 0xff at offset 0, which is not UTF-8, it looks like UTF-16"),
        ("a.json", '[{"a": 1},]', "line 1, column 11: not JSON .a comma before the closing bracket"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "line 2, column 1: not JSON"),
        ("a.json", '[{"a": 1, "a": 2}]', "the key 'a' stands twice"),
        ("a.json", "", "line 1, column 1: not JSON .it ends too early"),
        ("a.json", '{"a": [1], "b": [1, 2]}', "as many values in each, got {'a': 1, 'b': 2}"),
        ("a.json", '{"a": 1}', "an array of objects or an object of columns"),
        ("a.json", '"text"', "an array of objects"),
    ],
)
def test_a_corrupt_file_is_refused_with_the_place(written, name, content, message):
    path = written(name, content)
    with pytest.raises(ConfigError, match=message) as caught:
        list(read_json(path) if name.endswith(".json") else JsonLines(path))
    assert str(path) in str(caught.value)


def test_a_compressed_file_that_is_cut_off_is_refused(written):
    path = written("a.jsonl.gz", '{"a": 1}\n' * 1000)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConfigError, match=r"cannot read the dataset .*a\.jsonl\.gz: .*end-of-stream"):
        JsonLines(path)
    path.write_bytes(b'{"a": 1}')
    with pytest.raises(ConfigError, match="Not a gzipped file"):
        JsonLines(path)


def test_a_json_file_may_be_an_array_an_object_of_columns_or_lines(written):
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert list(read_json(written("a.json", json.dumps(rows)))) == rows
    assert list(read_json(written("b.json", '{"a": [1, 2], "b": ["x", "y"]}'))) == rows
    path = written("c.json", "\n".join(map(json.dumps, rows)))
    assert list(read_json(path)) == rows
    assert read_json(path).where(1) == f"{path}, line 2"
    assert list(read_json(written("d.json.gz", json.dumps(rows)))) == rows


def test_an_element_of_an_array_that_is_no_object_is_a_fault(written):
    path = written("a.json", '[{"a": 1}, 3]')
    with pytest.raises(RowFault, match=r"a\.json, row 2: the row must be an object with columns, got the number 3"):
        read_json(path)[1]


def test_a_scan_begins_at_any_row_and_counts_all(written):
    path = written("a.jsonl", '{"a": 0}\n\n{"a": 1}\nx\n{"a": 3}\n')
    assert [where for where, _ in scan_lines(path, 1)] == [f"{path}, line {line}" for line in (3, 4, 5)]
    scan = scan_lines(path, 9)
    with pytest.raises(StopIteration) as end:
        next(scan)
    assert end.value.value == 4


def test_a_name_in_capitals_is_compressed_too(written):
    for name, read in (("a.jsonl.gz", JsonLines), ("a.json.gz", read_json)):
        path = written(name, '{"a": 1}\n{"a": 2}\n')
        assert list(read(path.rename(path.with_name(name.upper())))) == [{"a": 1}, {"a": 2}]


def test_half_of_a_surrogate_pair_is_no_character_in_an_array_either(written):
    rows = read_json(written("a.json", r'[{"a": "b"}, {"a": [{"b": "c \ud800 d"}]}, {"a": "\ud83d\ude00"}]'))
    assert (rows[0], rows[2]) == ({"a": "b"}, {"a": "\U0001f600"})
    with pytest.raises(RowFault, match=r"a\.json, row 2: the row must be text of whole characters, got half .* near 'c \? d'"):
        rows[1]


def test_a_file_that_somebody_writes_to_is_read_no_further(written):
    content = '{"a": 1}\n{"a": 2}\n'
    path = written("a.jsonl", content)
    rows = JsonLines(path)
    assert rows[0] == {"a": 1}
    with path.open("a") as file:
        file.write('{"a": 3}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl has changed while it was read: start again when nothing writes to it"):
        rows[1]


def test_a_file_that_another_took_the_place_of_is_not_read_by_the_old_places(written):
    path = written("a.jsonl", '{"a": 1}\n{"a": 2}\n')
    rows = JsonLines(path)
    written("b.jsonl", '{"b": 1}\n{"b": 2}\n').replace(path)
    with pytest.raises(ConfigError, match=r"a\.jsonl has changed"):
        rows[1]
    gone = JsonLines(path)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot read the dataset"):
        gone[0]
