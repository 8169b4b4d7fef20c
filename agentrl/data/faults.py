"""What is wrong with a row of a dataset, and the count of the rows that a run leaves out because of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_SHOWN = 5
"""Faults that are kept to be shown; the rest are only counted."""
MOST_CHARACTERS = 60
"""Of a value in a message."""
_LONG = 10**MOST_CHARACTERS


class RowFault(ConfigError):
    """A row is not what its schema says; one line that names the row, the field, what was expected and what is there."""

    def __init__(self, *, field: str, expected: str, got: str, where: str | None = None, cure: str | None = None) -> None:
        """Describe a fault.

        Args:
            field: the column or the place in it, `messages[2].role`; "row" where it is the whole row.
            expected: what would be right, as a noun phrase.
            got: what is there, `described`.
            where: file and line or row, `train.jsonl, line 17`; None until a caller who knows it says so with `at`.
            cure: what to change, where that is more than the field.
        """
        self.field, self.expected, self.got, self.where, self.cure = field, expected, got, where, cure
        place = f"{where}: " if where else ""
        subject = "the row" if field == "row" else f"`{field}`"
        super().__init__(f"{place}{subject} must be {expected}, got {got}{f'; {cure}' if cure else ''}")

    def at(self, where: str) -> RowFault:
        """The same fault with its place; one that has a place keeps it."""
        return RowFault(field=self.field, expected=self.expected, got=self.got, where=self.where or where, cure=self.cure)

    def inside(self, outer: str) -> RowFault:
        """The same fault of a value that lies in the column `outer`."""
        joined = outer if self.field == "row" else f"{outer}{self.field}" if self.field.startswith("[") else f"{outer}.{self.field}"
        return RowFault(field=joined, expected=self.expected, got=self.got, where=self.where, cure=self.cure)

    @property
    def kind(self) -> str:
        """The fault without the row's own values: rows with the same one are counted together."""
        without_places = "".join(part.partition("]")[2] if number else part for number, part in enumerate(self.field.split("[")))
        return f"{without_places}: expected {self.expected}"


class DataFaults:
    """Stops at the first bad row, or counts the bad rows of a dataset and keeps the first few."""

    def __init__(self, on_bad_row: Literal["error", "skip"] = "error", *, most_shown: int = MOST_SHOWN) -> None:
        self._on_bad_row, self._most_shown = on_bad_row, most_shown
        self.num_rows = 0
        """Rows that were left out."""
        self.shown: list[RowFault] = []
        """The first of them."""
        self.counts: Counter[str] = Counter()
        """Rows by `RowFault.kind`."""

    def add(self, fault: RowFault) -> None:
        """Count a row that is left out. Raises the fault, a `ConfigError`, where a bad row is an error."""
        if self._on_bad_row == "error":
            cure = "mend the row, or leave such rows out with data.on_bad_row=skip (--on-bad-row skip), which counts them"
            both = f"{fault.cure}; or {cure}" if fault.cure else cure
            raise RowFault(field=fault.field, expected=fault.expected, got=fault.got, where=fault.where, cure=both) from None
        self.num_rows += 1
        self.counts[fault.kind] += 1
        if len(self.shown) < self._most_shown:
            self.shown.append(fault)

    def summary(self) -> str:
        """What was left out and why, in lines; empty where nothing was."""
        if not self.num_rows:
            return ""
        kinds = [f"  {count} x {kind}" for kind, count in self.counts.most_common()]
        first = [f"  {fault}" for fault in self.shown]
        return "\n".join([f"{self.num_rows} bad row{'s' if self.num_rows > 1 else ''} left out:", *kinds, "the first of them:", *first])


def described(value: Any) -> str:
    """A value for a message: its kind, and its text as far as that is short."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {_cut(value)!r}" if value else "an empty text"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # a whole number of thousands of digits has no `repr`
        return f"the number {_cut(repr(value))}" if isinstance(value, float) or abs(value) < _LONG else "a number of more than 60 digits"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}: {_cut(repr(value))}" if value else "an empty list"
    if isinstance(value, dict):
        return f"an object with {_keys(value)}" if value else "an empty object"
    return f"a {type(value).__name__}"


def _keys(value: Mapping[Any, Any]) -> str:
    return "the keys " + _cut(", ".join(map(str, value)))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."
