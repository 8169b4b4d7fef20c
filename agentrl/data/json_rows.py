"""Rows of JSON lines and JSON files, each object as it was written: nothing in between merges the keys of different rows."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from array import array
from typing import TYPE_CHECKING, Any, NoReturn

from agentrl.data.faults import RowFault, described
from agentrl.data.folders import is_packed
from agentrl.data.rows import ObjectRows, check_characters
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path
    from typing import BinaryIO

_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PAR1": "Parquet", b"PK": "zip"}
"""What a file that is not plain UTF-8 begins with."""
_BOM = b"\xef\xbb\xbf"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


class JsonLines:
    """Rows of a file of JSON lines, parsed when they are asked for; only where they begin is held in memory.

    Blank lines are no rows. A compressed file (`.gz`) is held unpacked.
    """

    def __init__(self, path: Path) -> None:
        """Find the lines. Raises `ConfigError` for a file that cannot be read."""
        self._path = path
        self.notices: tuple[str, ...] = ()
        self._starts, self._numbers = array("Q"), array("Q")
        self._lengths = array("Q")
        self._memory = _unpacked(path) if is_packed(path) else None
        self._state = _state(_stat(path))
        for number, start, line in _lines(path):
            self._starts.append(start)
            self._lengths.append(len(line))
            self._numbers.append(number)
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, length = self._starts[index], self._lengths[index]
        line = self._memory[start : start + length] if self._memory is not None else self._read(start, length)
        return parsed(line, self.where(index))

    def where(self, index: int) -> str:
        """`train.jsonl, line 17`, counted from 1, blank lines too."""
        return f"{self._path}, line {self._numbers[index]}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _read(self, start: int, length: int) -> bytes:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except OSError as error:
                cannot_read(self._path, error)
        if _state(os.fstat(self._file.fileno())) != self._state:  # lines lie elsewhere now, or are others
            raise ConfigError(f"the dataset {self._path} has changed while it was read: start again when nothing writes to it")
        return os.pread(self._file.fileno(), length, start)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()


def read_json(path: Path) -> ObjectRows | JsonLines:
    """Rows of a JSON file: an array of objects, an object of columns, or, whatever it is called, one object a line.

    Raises `ConfigError` naming line and column for what is no JSON, and what the file holds where that is no rows.
    """
    content = _unpacked(path) if is_packed(path) else _bytes_of(path)
    if is_lines(content):
        return JsonLines(path)
    text = ""
    try:
        text = content.removeprefix(_BOM).decode()
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: JSON in UTF-8 is expected, got {bad_byte(error)}; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}{_place(error)}: not JSON ({error_text(error, text)})") from None
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"{path}: an object of columns has as many values in each, got {lengths}")
        value = [dict(zip(value, values, strict=True)) for values in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise ConfigError(f"{path}: a JSON dataset is an array of objects or an object of columns (lists), got {described(value)}")
    return ObjectRows(value, str(path))


def scan_lines(path: Path, start: int = 0) -> Generator[tuple[str, dict[str, Any] | RowFault], None, int]:
    """The rows from the `start`-th on, each with its place, or the fault of one, and at the end how many the file has.

    Reads the file as it goes. Raises `ConfigError` where it cannot.
    """
    index = -1
    for index, (number, _, line) in enumerate(_lines(path)):
        if index >= start:
            where = f"{path}, line {number}"
            try:
                yield where, parsed(line, where)
            except RowFault as fault:
                yield where, fault
    return index + 1


def parsed(line: bytes, where: str) -> dict[str, Any]:
    """The row of a line. Raises `RowFault` for what is no JSON object in UTF-8 with each key once."""
    text = ""
    try:
        text = line.removeprefix(_BOM).decode()
        row = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        place = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        got = bad_byte(error) if isinstance(error, UnicodeDecodeError) else f"{described(text.strip())}{place} ({error_text(error, text)})"
        raise RowFault(field="row", expected="one JSON object a line", got=got, where=where) from None
    if not isinstance(row, dict):
        cure = "a JSON array is read from a file that is called .json" if isinstance(row, list) else None
        raise RowFault(field="row", expected="one JSON object a line", got=described(row), where=where, cure=cure)
    if "\\ud" in text or "\\uD" in text:
        check_characters(row, where)
    return row


def bad_byte(error: UnicodeDecodeError) -> str:
    """What is not UTF-8, and what it may be."""
    kind = looks_like(error.object)
    hint = f", it looks like {kind}" if kind else ""
    return f"byte 0x{error.object[error.start]:02x} at offset {error.start}, which is not UTF-8{hint}"


def error_text(error: BaseException, text: str) -> str:
    """What is wrong with JSON, and the likely cause of it."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    before, behind = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if before.endswith(",") and behind[:1] in {"}", "]"}:
        return "a comma before the closing bracket"
    if behind.startswith("'"):
        return "quotes in JSON are double"
    if behind[:4] in {"True", "None"} or behind.startswith("False"):
        return "write true, false and null as JSON does"
    if not behind:
        return "it ends too early"
    return error.msg


def is_lines(content: bytes) -> bool:
    """Whether a file holds one object a line rather than one value: its first line is an object and there are more."""
    first, _, rest = content.removeprefix(_BOM).lstrip().partition(b"\n")
    if not first.startswith(b"{") or not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines that are not blank: number from 1, offset and bytes. Raises `ConfigError` for a file that cannot be read."""
    offset = 0
    try:
        with gzip.open(path) if is_packed(path) else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _refuse_foreign(path, line)
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        cannot_read(path, error)


def _refuse_foreign(path: Path, line: bytes) -> None:
    """What is plainly not text in UTF-8 has one message, not one a line."""
    kind = looks_like(line)
    if kind is not None:
        cure = "save it as UTF-8" if kind == "UTF-16" else f"its name must say so ({'.gz' if kind == 'gzip' else kind})"
        raise ConfigError(f"{path} is no file of JSON lines: it looks like {kind}; {cure}")


def looks_like(content: bytes) -> str | None:
    """What kind of file begins so, where it is one that is no plain text in UTF-8."""
    return next((kind for start, kind in _ENCODINGS.items() if content.startswith(start)), None)


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        cannot_read(path, error)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        cannot_read(path, error)


def _state(found: os.stat_result) -> tuple[int, int, int]:
    """What of a file is another when somebody has written to it, or has put another in its place."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        cannot_read(path, error)


def cannot_read(path: Path, error: BaseException) -> NoReturn:
    """Raise the `ConfigError` about a file that the machine does not give, or that is cut off."""
    raise ConfigError(f"cannot read the dataset {path}: {error}") from error


def _place(error: BaseException) -> str:
    return f", line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
