"""Rows of Parquet files and of `datasets`: Arrow tables, and what they do to nested columns.

A column of objects has one type for all rows, so Arrow gives each object the keys of all of them, with nulls for those that it did not
have: of `{"a": 1}` and `{"b": 2}` become `{"a": 1, "b": null}` and `{"a": null, "b": 2}`. A template would write these nulls. They cannot
be told from nulls that were written, so they are left out only where a null says nothing: inside messages, their tool calls' arguments
among them, and in `tools`. Columns of JSON (`datasets.Json`, or text) keep what was written, and nothing is left out of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agentrl.data.faults import RowFault
from agentrl.data.rows import as_row
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from pathlib import Path

CHUNK = 256
"""Rows that are turned into Python objects together where they are read in order."""
MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "reference", "privileged_context")
"""Columns that may hold messages."""


class ArrowRows:
    """Rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, name: str, first: int = 0) -> None:
        """Wrap a dataset.

        Args:
            dataset: a `datasets.Dataset`.
            name: what its rows are called in messages.
            first: rows that stand in front of it where it is a stretch of something longer.
        """
        self._dataset, self._name, self._before = dataset, name, first
        self._merged = merged_columns(dataset.features)
        self.notices = (notice(name, self._merged),) if self._merged else ()
        self._first, self._chunk = 0, list[dict[str, Any]]()
        self._broken = ""
        """Why the last row could not be read."""

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if not self._first <= index < self._first + len(self._chunk):
            in_order = index == self._first + len(self._chunk)
            self._chunk = (self._read(index, CHUNK) if in_order else []) or self._read(index, 1)
            self._first = index
        if not self._chunk:
            raise RowFault(field="row", expected="one that `datasets` can decode", got=self._broken, where=self.where(index))
        return without_filled_nulls(as_row(self._chunk[index - self._first], self.where(index)), self._merged)

    def where(self, index: int) -> str:
        """`train.parquet, row 17`, counted from 1."""
        return f"{self._name}, row {self._before + index + 1}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _read(self, start: int, count: int) -> list[dict[str, Any]]:
        """Rows as objects; none where one of them cannot be decoded."""
        try:
            columns = self._dataset[start : start + count]
        except Exception as error:  # somebody else's decoders, on what may be a damaged file
            self._broken = f"{type(error).__name__}: {first_line(error)}"
            return []
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def read_parquet(path: Path) -> ArrowRows:
    """The rows of a Parquet file, its table in memory. Raises `ConfigError` for a file that is none."""
    from pyarrow import parquet  # type: ignore[import-untyped]

    with _damage(path):
        return ArrowRows(_dataset(parquet.read_table(path)), str(path))


def scan_parquet(path: Path, start: int = 0) -> Generator[tuple[str, dict[str, Any] | RowFault], None, int]:
    """The rows from the `start`-th on, each with its place, or the fault of one, and at the end how many the file has.

    Reads one row group at a time. Raises `ConfigError` where it cannot.
    """
    from pyarrow import parquet

    first = 0
    with _damage(path), parquet.ParquetFile(path) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    for number, count in enumerate(counts):
        if first + count > start:
            with _damage(path), parquet.ParquetFile(path) as file:
                rows = ArrowRows(_dataset(file.read_row_group(number)), str(path), first)
            for index in range(max(0, start - first), count):
                try:
                    yield rows.where(index), rows[index]
                except RowFault as fault:
                    yield rows.where(index), fault
        first += count
    return first


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raises `ConfigError` for whatever a Parquet reader raises."""
    try:
        yield
    except Exception as error:  # somebody else's code, on what may be a damaged file
        raise ConfigError(f"cannot read the dataset {path} as Parquet: {first_line(error)}") from error


def merged_columns(features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Columns of messages or tools that hold objects of one type for all rows, with their types."""
    return {name: feature for name, feature in (features or {}).items() if name in {*MESSAGES, "tools"} and _has_objects(feature)}


def notice(name: str, columns: Iterable[str]) -> str:
    """What is told of such columns."""
    return (
        f"{name}: Arrow gave the objects in {', '.join(f'`{column}`' for column in columns)} each other's keys and filled them with nulls; "
        "nulls in there are left out. Columns of `datasets.Json()` or of JSON text, and JSON lines, keep what was written"
    )


def without_filled_nulls(row: dict[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the nulls that Arrow filled in, in these columns; a message keeps a `content` of null."""
    for name, feature in columns.items():
        row[name] = _pruned(row[name], feature, kept=() if name == "tools" else ("content",))
    return row


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its further lines."""
    return str(error).partition("\n")[0] or type(error).__name__


def _dataset(table: Any) -> Any:
    """A table as a `datasets.Dataset`, which decodes its columns of JSON; nothing is copied."""
    from datasets import Dataset  # type: ignore[import-untyped]
    from datasets.table import InMemoryTable  # type: ignore[import-untyped]

    return Dataset(InMemoryTable(table))


def _pruned(value: Any, feature: Any, kept: tuple[str, ...] = ()) -> Any:
    """The value without the nulls of its objects, as far as these have the keys of Arrow's type.

    Args:
        value: of a column.
        feature: its type; what lies in a column of JSON has none of Arrow's and stays as it is.
        kept: keys of the outermost objects that stay.
    """
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _pruned(one, feature.get(key)) for key, one in value.items() if one is not None or key in kept}
    inner = _inner(feature)
    return [_pruned(one, inner, kept) for one in value] if inner is not None and isinstance(value, list) else value


def _has_objects(feature: Any) -> bool:
    """Whether a feature of `datasets` holds structs, plain dicts there, that have more keys than each message has."""
    if isinstance(feature, dict):
        return not feature.keys() <= {"role", "content", "from", "value"} or any(map(_has_objects, feature.values()))
    inner = _inner(feature)
    return inner is not None and _has_objects(inner)


def _inner(feature: Any) -> Any:
    """What a list is a list of; None for what is no list."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
