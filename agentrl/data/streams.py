"""Rows read as they are needed, in an order that the seed decides, going on exactly where they stopped.

    open_stream(spec) -> Stream, one pass over a dataset from any row on
    draw([streams], weights, seed, place) -> rows without end, each with the place behind it

Nothing is read ahead but a block of `BLOCK` rows of each dataset, which is shuffled by itself: a row is drawn within a block's length of
where it stands, so data that is sorted over longer stretches should be shuffled on the disk. Where a dataset ends it begins again, its
blocks in another order; an epoch is a pass over one dataset. Of several datasets each next row is of the one that is furthest behind its
share, so that after n rows each has its share of n to within a row.
"""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from agentrl.data.arrow_rows import first_line, merged_columns, notice, scan_parquet, without_filled_nulls
from agentrl.data.csv_rows import scan_csv
from agentrl.data.faults import RowFault
from agentrl.data.folders import is_saved, splits_of, suffix_of
from agentrl.data.json_rows import scan_lines
from agentrl.data.rows import PlacedRows, as_row
from agentrl.data.sources import Load, Source, load_from_hub, open_rows, read_file
from agentrl.data.specs import DatasetSpec, SplitPart, choose_split
from agentrl.data.splits import digest
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from typing import Literal

    from agentrl.data.rows import Rows

BLOCK = 1000
"""Rows of a dataset that are held and shuffled together."""
_SHUFFLE = 0x5EED
"""Keeps these draws apart from others of the same seed."""


class SourcePlace(NamedTuple):
    """How far one dataset was drawn; as a list in JSON, and back with `SourcePlace(*list)`."""

    taken: int = 0
    """Rows that were drawn of it, over all epochs."""
    epoch: int = 0
    row: int = 0
    """Rows of the epoch that were drawn."""


class Drawn(NamedTuple):
    """A row, or what is wrong with it."""

    where: str
    row: dict[str, Any] | RowFault
    source: int
    """The number of its dataset."""
    place: tuple[SourcePlace, ...]
    """Where the next row is drawn from, one a dataset."""


class Stream(Protocol):
    """A dataset that is read from one end to the other."""

    @property
    def notices(self) -> Sequence[str]:
        """What is worth telling about how they are read."""
        ...

    def scan(self, start: int = 0) -> Iterator[tuple[str, dict[str, Any] | RowFault]]:
        """One pass over the rows from the `start`-th on: the place of each, and the row or what is wrong with it."""
        ...


class FileStream:
    """Stretches of files."""

    def __init__(self, parts: Sequence[tuple[Sequence[Path], SplitPart]]) -> None:
        self._parts = parts
        self.notices: Sequence[str] = ()

    def scan(self, start: int = 0) -> Iterator[tuple[str, dict[str, Any] | RowFault]]:
        """One pass from the `start`-th row on. What lies in front of it is read and not parsed, where there is one stretch."""
        if len(self._parts) == 1:
            files, part = self._parts[0]
            first, stop = _window(part)
            yield from islice(_scan_all(files, first + start), None if stop is None else max(0, stop - first - start))
        else:
            yield from islice(chain.from_iterable(FileStream([part]).scan() for part in self._parts), start, None)


class RowsStream:
    """Rows that are held anyway."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.notices = rows.notices

    def scan(self, start: int = 0) -> Iterator[tuple[str, dict[str, Any] | RowFault]]:
        """One pass from the `start`-th row on."""
        for index in range(start, len(self._rows)):
            try:
                yield self._rows.where(index), self._rows[index]
            except RowFault as fault:
                yield self._rows.where(index), fault


class HubStream:
    """A `datasets.IterableDataset`."""

    def __init__(self, dataset: Any, name: str, part: SplitPart) -> None:
        self._dataset, self._name, self._part = dataset, name, part
        self._merged = merged_columns(dataset.features)
        self.notices = (notice(name, self._merged),) if self._merged else ()

    def scan(self, start: int = 0) -> Iterator[tuple[str, dict[str, Any] | RowFault]]:
        """One pass from the `start`-th row on. Raises `ConfigError` where the library raises."""
        first, stop = _window(self._part)
        first += start
        rows = iter(self._dataset.skip(first) if first else self._dataset)
        for index in range(first, 2**63 if stop is None else stop):
            try:
                row = next(rows, None)
            except Exception as error:  # somebody else's code and a network
                raise ConfigError(f"dataset {self._name} could not be read on behind row {index}: {first_line(error)}") from error
            if row is None:
                return
            where = f"{self._name}, row {index + 1}"
            yield where, without_filled_nulls(as_row(row, where), self._merged)


def open_stream(source: Source, *, split: Literal["train", "eval"] = "train", load: Load | None = None) -> Stream:
    """A dataset to be read as its rows are needed.

    Args:
        source: as of `open_rows`. JSON arrays and folders that `datasets` saved are opened as they are there.
        split: what they are for, which chooses among splits where the spec names none.
        load: stands in for `datasets.load_dataset`.

    Raises `ConfigError` for what is not there or is of no known kind, and for a stretch of rows that a stream cannot find (a percentage).
    """
    if not isinstance(source, str | Path):
        return RowsStream(open_rows(source))
    spec = DatasetSpec.parse(str(source))
    path = Path(spec.path).expanduser()
    if path.exists():
        if is_saved(path) or suffix_of(path) == ".json":
            return RowsStream(open_rows(source, split=split))
        return _of_files(spec, split, path)
    for part in spec.split:
        _window(part)
    if len(spec.split) > 1:
        raise ConfigError(f"dataset {spec.text!r} names several splits, of which a stream reads one: give each as one of `datasets`")
    loaded = load_from_hub(spec, load, streaming=True)
    if hasattr(loaded, "keys"):
        loaded = loaded[choose_split(spec.split[0], split, list(loaded.keys()), spec)]
    return HubStream(loaded, spec.path, spec.split[0])


def draw(
    streams: Sequence[Stream],
    weights: Sequence[float] | None = None,
    *,
    seed: int | None,
    place: Sequence[SourcePlace] | None = None,
    block: int = BLOCK,
) -> Iterator[Drawn]:
    """Rows of several streams without end.

    Args:
        streams: one or more.
        weights: their shares of the rows, in proportion to each other; None gives each the same.
        seed: of the order; None takes the rows as they stand.
        place: where to go on, of the last row that was used; None is the start.
        block: rows that are shuffled together.

    Raises `ConfigError` where a stream has no rows or cannot be read.
    """
    shares = [1.0] * len(streams) if weights is None else list(weights)
    places = [SourcePlace(*one) for one in place or [SourcePlace()] * len(streams)]
    sources = [_endless(stream, places[number], (seed, number), block) for number, stream in enumerate(streams)]
    while True:
        number = min(range(len(streams)), key=lambda one: ((places[one].taken + 1) / shares[one], one))
        where, row, places[number] = next(sources[number])
        yield Drawn(where, row, number, tuple(places))


def hold_out_first(stream: Stream, count: int) -> tuple[Rows, frozenset[bytes]]:
    """The first `count` rows of a stream, to evaluate on, and the `splits.digest` of each: rows with one of them are not to be trained.

    Raises `ConfigError` where there are fewer.
    """
    places: list[str] = []
    rows: list[dict[str, Any]] = []
    for where, row in stream.scan():
        if len(rows) == count:
            break
        if not isinstance(row, RowFault):
            places.append(where)
            rows.append(row)
    if len(rows) < count:
        raise ConfigError(f"data.eval_rows is {count}, and the dataset that is streamed holds {len(rows)} rows")
    return PlacedRows(rows, places), frozenset(map(digest, rows))


def _endless(
    stream: Stream, place: SourcePlace, seed: tuple[int | None, int], block: int
) -> Iterator[tuple[str, dict[str, Any] | RowFault, SourcePlace]]:
    """Pass after pass, from a place on."""
    taken, epoch, row = place
    while True:
        begun = row
        first = row // block * block
        scanned = stream.scan(first)
        while rows := list(islice(scanned, block)):
            for index in _order(len(rows), seed, epoch, first // block)[row - first :]:
                taken, row = taken + 1, row + 1
                yield (*rows[index], SourcePlace(taken, epoch, row))
            first += len(rows)
            row = max(row, first)
        if row == begun == 0:
            raise ConfigError("a dataset that is streamed holds no rows")
        epoch, row = epoch + 1, 0


def _order(length: int, seed: tuple[int | None, int], epoch: int, block: int) -> Sequence[int]:
    """The order of a block's rows: a function of seed, dataset, epoch and block."""
    if seed[0] is None:
        return range(length)
    order: list[int] = np.random.default_rng([_SHUFFLE, seed[0], seed[1], epoch, block]).permutation(length).tolist()
    return order


def _of_files(spec: DatasetSpec, role: str, path: Path) -> FileStream:
    if path.is_file():
        read_file_of_kind(path)
        wrong = [part.name for part in spec.split if part.name not in {"", "train"}]
        if wrong:
            raise ConfigError(f"dataset {spec.text!r} is one file, which has no split {wrong[0]!r}: name the file that has it")
        splits: Mapping[str, Sequence[Path]] = {"train": [path]}
        role = "train"
    else:
        splits = splits_of(path)
    for part in spec.split:
        _window(part)
    return FileStream([(splits[choose_split(part, role, list(splits), spec)], part) for part in spec.split])


def read_file_of_kind(path: Path) -> None:
    """Raise `ConfigError` for a file that no scanner reads."""
    if suffix_of(path) not in {".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}:
        read_file(path)


def _window(part: SplitPart) -> tuple[int, int | None]:
    """First row and the one behind the last of a stretch. Raises `ConfigError` for one that takes the dataset's length to know."""
    bounds = [part.start or "0", part.stop or "0"]
    if any(bound.endswith("%") or bound.startswith("-") for bound in bounds):
        raise ConfigError(
            f"split {part.name}[{part.start or ''}:{part.stop or ''}] takes the dataset's length, which a stream does not know"
        )
    return int(bounds[0]), None if part.stop is None else int(bounds[1])


def _scan_all(files: Sequence[Path], start: int) -> Generator[tuple[str, dict[str, Any] | RowFault], None, int]:
    """The rows of files behind each other from the `start`-th on; returns how many there are."""
    total = 0
    for path in files:
        skipped = max(0, start - total)
        suffix = suffix_of(path)
        if suffix == ".parquet":
            total += yield from scan_parquet(path, skipped)
        elif suffix in {".csv", ".tsv"}:
            total += yield from scan_csv(path, skipped)
        elif suffix == ".json":
            rows = read_file(path)
            total += len(rows)
            yield from RowsStream(rows).scan(skipped)
        else:
            total += yield from scan_lines(path, skipped)
    return total
