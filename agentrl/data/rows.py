"""Rows that were opened: by number, each with its place in a file."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.data.faults import RowFault, described

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Rows(Protocol):
    """The rows of a dataset, in the order in which they stand."""

    @property
    def notices(self) -> Sequence[str]:
        """What is worth telling about how they were read."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A row as its own object. Raises `RowFault`, with its place, where what stands there is no row; `IndexError` behind the last."""
        ...

    def where(self, index: int, /) -> str:
        """File and line or row, counted from 1: `train.jsonl, line 17`."""
        ...


class ObjectRows:
    """Rows that are Python objects."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], name: str = "the dataset") -> None:
        self._rows, self._name = rows, name
        self.notices: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = self.where(index)
        row = as_row(self._rows[index], where)
        check_characters(row, where)
        return row

    def where(self, index: int) -> str:
        """`the dataset, row 17`, counted from 1."""
        return f"{self._name}, row {index + 1}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class PlacedRows(ObjectRows):
    """Rows that are held, each with the place that it came from."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], places: Sequence[str]) -> None:
        super().__init__(rows)
        self._places = places

    def where(self, index: int) -> str:
        """The place that it came from."""
        return self._places[index]


class SelectedRows:
    """Some rows of others, by their numbers."""

    def __init__(self, rows: Rows, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices
        self.notices = rows.notices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[int(self._indices[index])]

    def where(self, index: int) -> str:
        """The place in the file that it comes from."""
        return self._rows.where(int(self._indices[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class JoinedRows:
    """Several sets of rows behind each other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.notices = tuple(dict.fromkeys(notice for part in parts for notice in part.notices))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, inner = self._find(index)
        return part[inner]

    def where(self, index: int) -> str:
        """The place in the part that it comes from."""
        part, inner = self._find(index)
        return part.where(inner)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _find(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


def as_row(value: Any, where: str) -> dict[str, Any]:
    """A row as an object of its own. Raises `RowFault` for what is no object."""
    if not isinstance(value, dict):
        if hasattr(value, "keys") and hasattr(value, "__getitem__"):
            value = {name: value[name] for name in value.keys()}  # noqa: SIM118 -- a mapping need not iterate over its keys
        else:
            raise RowFault(field="row", expected="an object with columns", got=described(value), where=where)
    if not all(isinstance(name, str) for name in value):
        raise RowFault(field="row", expected="an object whose keys are names", got=f"the keys {list(value)!r:.60}", where=where)
    return {name: _plain(one) for name, one in value.items()}


def _plain(value: Any) -> Any:
    """A value with numpy's and torch's numbers and arrays as Python's, those of a list too."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple) and value and hasattr(value[0], "dtype"):
        return [_plain(one) for one in value]
    return value


def check_characters(value: Any, where: str) -> None:
    """Raise `RowFault` where a text in a row has half of a surrogate pair, which is no character: no tokenizer takes it."""
    if isinstance(value, str):
        if value.isascii():
            return
        try:
            value.encode()
        except UnicodeEncodeError as error:
            near = re.sub(r"[^\x20-\x7e]", "?", value[max(0, error.start - 20) : error.start + 20])
            got = f"half of a surrogate pair near {near!r}"
            raise RowFault(field="row", expected="text of whole characters", got=got, where=where) from None
    elif isinstance(value, dict):
        for name, one in value.items():
            check_characters(name, where)
            check_characters(one, where)
    elif isinstance(value, list | tuple) and not (value and isinstance(value[0], int | float)):  # of token ids there are many
        for one in value:
            check_characters(one, where)
