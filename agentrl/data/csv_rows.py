"""Rows of CSV and TSV files. A cell is text, whatever it looks like, until the name of its column says otherwise."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

from agentrl.data.faults import RowFault, described
from agentrl.data.folders import is_packed, suffix_of
from agentrl.data.json_rows import cannot_read, looks_like
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_NUMBERS = ("margin", "weight")
_LISTS = ("messages", "conversations", "completions", "labels", "input_ids", "completion_mask", "assistant_masks", "attention_mask")
_MOST_CHARACTERS = 2**31 - 1
"""Of a cell; the module's own limit of 131,072 is less than a long completion."""


class Cell(str):
    """Text of a CSV file, which a column that is no text has still to read."""

    __slots__ = ()


class CsvRows:
    """Rows of a file with a header, held in memory."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises `ConfigError` for one that cannot be read or is no CSV, with the line."""
        self._path = path
        self.notices: tuple[str, ...] = ()
        self._rows = list(_records(path))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        header, _, cells = self._rows[index]
        return _row(header, cells, self.where(index))

    def where(self, index: int) -> str:
        """`train.csv, line 17`: the line on which the row begins, counted from 1."""
        return f"{self._path}, line {self._rows[index][1]}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def scan_csv(path: Path, start: int = 0) -> Generator[tuple[str, dict[str, Any] | RowFault], None, int]:
    """The rows from the `start`-th on, each with its place, or the fault of one, and at the end how many the file has.

    Reads the file as it goes. Raises `ConfigError` where it cannot.
    """
    index = -1
    for index, (header, line, cells) in enumerate(_records(path)):
        if index >= start:
            where = f"{path}, line {line}"
            try:
                yield where, _row(header, cells, where)
            except RowFault as fault:
                yield where, fault
    return index + 1


def from_cells(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with plain text where it had cells, and with what they say in the columns that are labels, numbers or lists.

    Raises `RowFault` for a cell that does not say such a thing; an empty one is null.
    """
    if not any(isinstance(value, Cell) for value in row.values()):
        return row
    return {name: _value(name, value) if isinstance(value, Cell) else value for name, value in row.items()}


def _value(name: str, cell: Cell) -> Any:
    text = str(cell)
    if name not in {"label", *_NUMBERS, *_LISTS}:
        return text
    if not text.strip():
        return None
    if name == "label":
        if text.strip().lower() not in _TRUTH:
            raise RowFault(field=name, expected="true or false (or 1 or 0)", got=described(text))
        return _TRUTH[text.strip().lower()]
    expected = "a number" if name in _NUMBERS else "a list in JSON"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowFault(field=name, expected=expected, got=described(text)) from None


def _records(path: Path) -> Iterator[tuple[list[str], int, list[str]]]:
    """Header, line and cells of each row that is not blank."""
    csv.field_size_limit(_MOST_CHARACTERS)
    delimiter = "\t" if suffix_of(path) == ".tsv" else ","
    line = 1
    try:
        with (gzip.open if is_packed(path) else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header: list[str] | None = None
            for cells in reader:
                if header is None:
                    header = _header(cells, path, delimiter)
                elif cells:
                    yield header, line, cells
                line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(
            f"{path}, line {line}: not CSV ({error}); a cell with quotes, commas or line breaks stands in double quotes"
        ) from None
    except UnicodeDecodeError as error:
        said = f"it looks like {kind}" if (kind := looks_like(error.object)) else error.reason
        raise ConfigError(f"{path}, after line {line}: not UTF-8 ({said}); save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        cannot_read(path, error)


def _header(cells: list[str], path: Path, delimiter: str) -> list[str]:
    twice = [name for name in cells if cells.count(name) > 1]
    if twice or not all(name.strip() for name in cells):
        got = f"{twice[0]!r} twice" if twice else "one without a name"
        raise ConfigError(f"{path}, line 1: the first line names the columns, each once, got {got}")
    padded = next((name for name in cells if name != name.strip()), None)
    if padded is not None:
        cure = "take out the spaces, of the cells below as well, where they would be trained"
        raise ConfigError(f"{path}, line 1: a column's name has no spaces around it, got {padded!r}; {cure}")
    other = next((one for one in ",;\t|" if one != delimiter and one in cells[0]), None) if len(cells) == 1 else None
    if other is not None:
        named = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
        cure = "name the file .tsv" if other == "\t" else "name the file .csv" if other == "," else "save it with commas"
        expected = f"{named[delimiter]} stand between the cells of a {suffix_of(path)} file"
        raise ConfigError(f"{path}, line 1: {expected}, got {named[other]}, {cells[0]!r}; {cure}")
    return cells


def _row(header: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(header):
        cure = "a text with commas or line breaks stands in double quotes"
        raise RowFault(field="row", expected=f"a row of {len(header)} cells", got=f"{len(cells)} cells", where=where, cure=cure)
    return {name: Cell(cell) for name, cell in zip(header, cells, strict=True)}
