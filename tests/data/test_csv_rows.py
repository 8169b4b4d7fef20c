"""CSV and TSV: text stays text, whatever it looks like."""

import gzip

import pytest

from agentrl.data.csv_rows import Cell, CsvRows, from_cells, scan_csv
from agentrl.data.faults import RowFault
from agentrl.errors import ConfigError


@pytest.fixture
def written(tmp_path):
    def write(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(
            gzip.compress(content.encode()) if name.endswith(".gz") else content if isinstance(content, bytes) else content.encode()
        )
        return path

    return write


def test_cells_are_text_until_their_column_says_otherwise(written):
    rows = CsvRows(written('prompt,completion,label,margin,labels\n007,NA,TRUE,0.5,"[true, false]"\n1e3,,0,,\n'))
    assert [from_cells(row) for row in rows] == [
        {"prompt": "007", "completion": "NA", "label": True, "margin": 0.5, "labels": [True, False]},
        {"prompt": "1e3", "completion": "", "label": False, "margin": None, "labels": None},
    ]
    assert not any(isinstance(value, Cell) for row in rows for value in from_cells(row).values())


def test_rows_know_the_line_on_which_they_begin(written):
    path = written('prompt,completion\n"a\nb, ""c""",d\n\ne,f\n')
    rows = CsvRows(path)
    assert [dict(row) for row in rows] == [{"prompt": 'a\nb, "c"', "completion": "d"}, {"prompt": "e", "completion": "f"}]
    assert [rows.where(index) for index in range(2)] == [f"{path}, line 2", f"{path}, line 5"]
    assert list(scan_csv(path, 1)) == [(f"{path}, line 5", rows[1])]


def test_tabs_compression_marks_and_long_cells_are_read(written):
    assert list(CsvRows(written("a\tb\n1,2\t3\n", "a.tsv"))) == [{"a": "1,2", "b": "3"}]
    assert list(CsvRows(written("a,b\n1,2\n", "a.csv.gz"))) == [{"a": "1", "b": "2"}]
    assert list(CsvRows(written("a\tb\n1\t2\n", "a.tsv.gz"))) == [{"a": "1", "b": "2"}]
    assert list(CsvRows(written("\ufeffa,b\r\n1,2\r\n"))) == [{"a": "1", "b": "2"}]
    assert len(CsvRows(written("a\n" + "x" * 300_000 + "\n"))[0]["a"]) == 300_000


@pytest.mark.parametrize("line", ["x", "x,y,z"])
def test_a_row_of_another_width_is_a_fault_of_its_own(written, line):
    path = written(f"a,b\n1,2\n{line}\n3,4\n")
    rows = CsvRows(path)
    assert rows[2] == {"a": "3", "b": "4"}
    with pytest.raises(RowFault, match=rf"a\.csv, line 3: the row must be a row of 2 cells, got {line.count(',') + 1} cells"):
        rows[1]
    assert [type(row) for _, row in scan_csv(path)] == [dict, RowFault, dict]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("maybe,1,[]", "`label` must be true or false .*, got the text 'maybe'"),
        ("true,x,[]", "`margin` must be a number, got the text 'x'"),
        ("true,1,a b", "`labels` must be a list in JSON, got the text 'a b'"),
    ],
)
def test_a_cell_that_does_not_say_what_its_column_is_for_is_a_fault(written, row, message):
    rows = CsvRows(written(f"label,margin,labels\n{row}\n"))
    with pytest.raises(RowFault, match=message):
        from_cells(rows[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,a\n1,2\n", "line 1: the first line names the columns, each once, got 'a' twice"),
        ("a,\n1,2\n", "line 1: .* got one without a name"),
        ('a,b\n1,2\n"x,2\n', "line 3: not CSV .*unexpected end of data"),
        ('a,b\n"x"y,2\n', "line 2: not CSV"),
        ("a, b\n1, 2\n", "line 1: a column's name has no spaces around it, got ' b'; take out the spaces"),
        ("a;b\n1;2\n", "line 1: commas stand between the cells of a .csv file, got semicolons, 'a;b'; save it with commas"),
        ("a\tb\n1\t2\n", "line 1: commas stand .* got tabs, .*; name the file .tsv"),
        ("a,b\n1,2\n".encode("utf-16"), r"not UTF-8 \(it looks like UTF-16\); save the file as UTF-8"),
        (b"a,b\n1,2\n\xff,2\n", "not UTF-8 .*; save the file as UTF-8"),
    ],
)
def test_a_corrupt_file_is_refused_with_the_place(written, content, message):
    with pytest.raises(ConfigError, match=rf"a\.csv, .*{message}"):
        CsvRows(written(content))
    with pytest.raises(ConfigError, match=message):
        list(scan_csv(written(content)))


def test_rows_without_cells_are_left_alone():
    row = {"label": "true"}
    assert from_cells(row) is row


def test_a_file_of_tabs_has_no_commas_between_its_cells(written):
    with pytest.raises(ConfigError, match=r"line 1: tabs stand between the cells of a \.tsv file, got commas, 'a,b'; name the file \.csv"):
        CsvRows(written("a,b\n1,2\n", "a.tsv"))


def test_a_name_in_capitals_says_what_a_small_one_says(written):
    path = written("a\tb\n1\t2\n", "a.tsv.gz")
    assert list(CsvRows(path.rename(path.with_name("A.TSV.GZ")))) == [{"a": "1", "b": "2"}]
