"""Tokenized rows as flat columns: some bytes a token, whatever the number of rows, and on the disk where they are many.

A list of Python integers takes 32 bytes a token, and an object a row some hundreds; a run of ten million rows has neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import xxhash

from agentrl.examples import Example, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import IO

Slice = tuple[int, int, int]
"""A text's number, and the first of its tokens and the one behind the last."""

TEACHER = "teacher"
"""The part that says which of some names a row has."""

SPILL_BYTES = 256 << 20
"""A longer column is kept in a temporary file that the system reads and forgets as it needs to."""


class Examples(Sequence[Example]):
    """Tokenized rows, made into an `Example` when somebody asks for one; built by `TableWriter`.

    Args:
        columns: by name; those of tokens and texts as `TableWriter` writes them.
        parts: [rows] float64 each, NaN where a row has no such number.
        where: place of a row by its number in the source, for messages.
        counts: what was read, left out and cut, as `data/rows` and the like.
        schema: of the rows, in words.
        teachers: names that the part `teacher` counts.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        parts: Mapping[str, np.ndarray],
        where: Callable[[int], str],
        counts: Mapping[str, float],
        schema: str = "",
        teachers: Sequence[str] = (),
    ) -> None:
        self._columns, self._parts, self._where = columns, parts, where
        self._teachers = tuple(teachers)
        self.counts, self.schema = dict(counts), schema

    def __len__(self) -> int:
        """Rows, or packed sequences."""
        return len(self._columns["first_text"]) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One row, or several."""
        chosen = range(len(self))[index]
        return [self._example(at) for at in chosen] if isinstance(chosen, range) else self._example(chosen)

    @property
    def lengths(self) -> np.ndarray:
        """[rows] int64: tokens of all texts of each row."""
        return np.diff(_starts(self.text_lengths)[self._columns["first_text"]])

    @property
    def text_lengths(self) -> np.ndarray:
        """[texts] int64: tokens of each text."""
        lengths: np.ndarray = self._columns["end"] - self._columns["start"]
        return lengths

    @property
    def part_names(self) -> tuple[str, ...]:
        """Numbers that some rows have."""
        return tuple(self._parts)

    @property
    def fingerprint(self) -> str:
        """Of the content, for a resumed run to check that it trains the same rows: 32 hexadecimal digits."""
        digest = xxhash.xxh3_128()
        for name, column in (*sorted(self._columns.items()), *sorted(self._parts.items())):
            if name != "row":  # where rows stand in their file changes nothing
                digest.update(f"{name} {column.dtype} {len(column)}\0".encode())
                digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        return digest.hexdigest()

    def _example(self, index: int) -> Example:
        columns = self._columns
        first, last = columns["first_text"][index : index + 2].tolist()
        numbers = {name: float(column[index]) for name, column in self._parts.items()}
        teacher = numbers.pop(TEACHER, np.nan)
        rows = columns["row"][first:last]
        return Example(
            where=self._place(rows),
            texts=tuple(self._text(at) for at in range(first, last)),
            rewards=tuple(columns["reward"][first:last].tolist()),
            parts={name: number for name, number in numbers.items() if number == number},
            teacher=self._teachers[int(teacher)] if teacher == teacher else None,
            joined=bool(columns["joined"][index]),
        )

    def _text(self, at: int) -> Text:
        columns = self._columns
        start, end = int(columns["start"][at]), int(columns["end"][at])
        trained = columns["trained"][start:end]
        if trained[0]:  # the later part of a row that was cut in two: nothing predicts its first token
            trained = trained.copy()
            trained[0] = False
        return Text(
            ids=columns["ids"][start:end],
            trained=trained,
            prompt_length=int(columns["prompt_length"][at]),
            labels=columns["labels"][start:end] if len(columns["labels"]) else None,
        )

    def packed(self, sequences: Sequence[Sequence[Slice]], counts: Mapping[str, float]) -> Examples:
        """The same tokens as sequences of slices of texts that do not see each other.

        Args:
            sequences: each one example.
            counts: in addition to those of the rows.
        """
        slices = np.array([one for sequence in sequences for one in sequence], dtype=np.int64).reshape(-1, 3)
        texts, old = slices[:, 0], self._columns
        starts, ends = old["start"][texts] + slices[:, 1], old["start"][texts] + slices[:, 2]
        prompts = np.clip(old["prompt_length"][texts] - slices[:, 1], 0, ends - starts).astype(np.int32)
        columns = {name: old[name] for name in ("ids", "trained", "labels")}
        columns |= {"start": starts, "end": ends, "prompt_length": prompts, "reward": old["reward"][texts], "row": old["row"][texts]}
        columns["first_text"] = _starts(np.array([len(sequence) for sequence in sequences], dtype=np.int64))
        columns["joined"] = np.ones(len(sequences), dtype=np.bool_)
        return Examples(columns, {}, self._where, {**self.counts, **counts}, self.schema)

    def is_trained(self, piece: Slice) -> bool:
        """Whether a slice of a text has a token that is trained when it stands alone."""
        text, start, end = piece
        first = int(self._columns["start"][text])
        return bool(self._columns["trained"][first + start + 1 : first + end].any())

    def _place(self, rows: np.ndarray) -> str:
        others = len(set(rows.tolist())) - 1
        return self._where(int(rows[0])) + (f" and {others} more" if others else "")


@dataclass(slots=True)
class _Column:
    """One that grows, in memory and past `spill_bytes` in a file without a name."""

    dtype: Any
    spill_bytes: int
    file: IO[bytes] | None = None
    length: int = 0
    parts: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        part = np.ascontiguousarray(values, dtype=self.dtype)
        self.length += len(part)
        if self.file is None and self.length * part.itemsize > self.spill_bytes:
            self.file = tempfile.TemporaryFile(prefix="agentrl-data-")  # noqa: SIM115 -- open as long as it is read
            for earlier in self.parts:
                self.file.write(earlier.data)
            self.parts = []
        if self.file is None:
            self.parts.append(part)
        else:
            self.file.write(part.data)

    def whole(self) -> np.ndarray:
        if self.file is None:
            column: np.ndarray = np.concatenate([np.zeros(0, dtype=self.dtype), *self.parts])
        else:
            self.file.flush()
            column = np.memmap(self.file, dtype=self.dtype, mode="r", shape=(self.length,))  # keeps the file, which has no name
        column.setflags(write=False)
        self.close()
        return column

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class TableWriter:
    """Collects examples into columns; a context manager, which ends what was not asked for.

    Args:
        spill_bytes: length of a column from which on it lies in a temporary file.
    """

    def __init__(self, *, spill_bytes: int = SPILL_BYTES) -> None:
        types = {"ids": np.int32, "trained": np.bool_, "labels": np.float32}
        self._tokens = {name: _Column(dtype, spill_bytes) for name, dtype in types.items()}
        self._texts: dict[str, list[np.ndarray]] = {name: [] for name in ("length", "prompt_length", "reward", "row")}
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in ("texts", "joined")}
        self._parts: dict[str, list[tuple[int, float]]] = {}
        self._teachers: dict[str, int] = {}
        self._num_rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for column in self._tokens.values():
            column.close()

    def add(self, examples: Iterable[tuple[Example, Sequence[int]]]) -> None:
        """Add examples in order, each with the rows of the source that its texts came from."""
        batch = list(examples)
        if not batch:
            return
        texts = [text for example, _ in batch for text in example.texts]
        self._tokens["ids"].add(np.concatenate([text.ids for text in texts]))
        self._tokens["trained"].add(np.concatenate([text.trained for text in texts]))
        if texts[0].labels is not None:
            self._tokens["labels"].add(np.concatenate([text.labels for text in texts if text.labels is not None]))
        self._texts["length"].append(np.array([len(text.ids) for text in texts], dtype=np.int64))
        self._texts["prompt_length"].append(np.array([text.prompt_length for text in texts], dtype=np.int32))
        self._texts["reward"].append(np.array([reward for example, _ in batch for reward in example.rewards], dtype=np.float64))
        self._texts["row"].append(np.array([row for _, rows in batch for row in rows], dtype=np.int64))
        self._rows["texts"].append(np.array([len(example.texts) for example, _ in batch], dtype=np.int64))
        self._rows["joined"].append(np.array([example.joined for example, _ in batch], dtype=np.bool_))
        for at, (example, _) in enumerate(batch, start=self._num_rows):
            for name, number in example.parts.items():
                self._parts.setdefault(name, []).append((at, number))
            if example.teacher is not None:
                name_at = self._teachers.setdefault(example.teacher, len(self._teachers))
                self._parts.setdefault(TEACHER, []).append((at, name_at))
        self._num_rows += len(batch)

    def examples(self, where: Callable[[int], str], counts: Mapping[str, float], schema: str = "") -> Examples:
        """What was added, with the places of its rows, the counts of what was read and the rows' schema."""
        columns = {name: column.whole() for name, column in self._tokens.items()}
        columns |= {name: _joined(self._texts[name], kind) for name, kind in _TEXT_TYPES.items()}
        ends = _starts(_joined(self._texts["length"], np.int64))
        columns["start"], columns["end"] = ends[:-1], ends[1:]
        columns["first_text"] = _starts(_joined(self._rows["texts"], np.int64))
        columns["joined"] = _joined(self._rows["joined"], np.bool_)
        counts = {
            "data/rows": float(self._num_rows),
            "data/tokens": float(self._tokens["ids"].length),
            "data/trained_tokens": float(np.count_nonzero(columns["trained"])),
            **counts,
        }
        parts = {name: _sparse(found, self._num_rows) for name, found in self._parts.items()}
        return Examples(columns, parts, where, counts, schema, tuple(self._teachers))


_TEXT_TYPES: dict[str, Any] = {"prompt_length": np.int32, "reward": np.float64, "row": np.int64}


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _sparse(found: Sequence[tuple[int, float]], length: int) -> np.ndarray:
    column = np.full(length, np.nan)
    places, numbers = zip(*found, strict=True)
    column[list(places)] = numbers
    return column
