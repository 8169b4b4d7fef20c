"""Examples of datasets that are read as a run needs them, a batch a step, going on exactly where a run stopped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import xxhash

from agentrl.data.faults import DataFaults, RowFault
from agentrl.data.prepare import RowReader, Tally, nothing_left, schema_of
from agentrl.data.rows import PlacedRows
from agentrl.data.splits import digest
from agentrl.data.streams import SourcePlace, draw, open_stream
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.data.streams import Drawn, Stream
    from agentrl.examples import DataKind, Example

AHEAD = 64
"""Rows that are tokenized at once."""
LOOKED_AT = 100
PLACES = 3
"""Steps whose places are known: a teacher may score one ahead of that which is trained."""
MOST_EMPTY = 100_000
"""Rows in a row of which none becomes an example, after which it is not to be expected that one will."""


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """How far the datasets of a run were used; rows are read a few at once, and it is the first of these that is noted."""

    sources: tuple[SourcePlace, ...]
    """Where the rows begin that come next, or those of which some examples are used."""
    used: int = 0
    """Examples of these rows that are used."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What became of the rows before them."""

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sources": [list(one) for one in self.sources], "used": self.used, "counts": dict(self.counts)}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> StreamPlace:
        """Back from a checkpoint."""
        return cls(tuple(SourcePlace(*one) for one in value["sources"]), value["used"], value["counts"])


@dataclass(frozen=True, slots=True)
class _Ready:
    """An example that waits for its step, and where to go on behind it."""

    example: Example
    place: StreamPlace
    epoch: float


class StreamedBatches:
    """The examples of each step of a run whose data is streamed.

    Args:
        config: the run file.
        kind: what the objective learns from.
        tokenizer: of the model.
        say: takes what a person should know.
        positions: most tokens that the model takes.
        vocabulary: number of tokens that the model has.

    Raises `ConfigError` for what cannot be read, or is nothing that the objective learns from.
    """

    def __init__(
        self,
        config: RunConfig,
        kind: DataKind,
        tokenizer: PreTrainedTokenizerBase,
        *,
        say: Callable[[str], None] = lambda _: None,
        positions: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        data = config.data
        if data.packing != "none":
            raise ConfigError(f"data.packing is {data.packing}, which takes all rows, and data.streaming is true: set data.packing=none")
        specs = [one.dataset for one in config.datasets] or [str(config.dataset)]
        self._weights = [one.weight for one in config.datasets] or None
        self._streams = [open_stream(spec) for spec in specs]
        self._seed = config.seed if data.shuffle else None
        self.tally = Tally(DataFaults(data.on_bad_row))
        """What became of the rows so far."""
        self._say, self._tell_at = say, 1
        teachers = [one.name for one in config.teacher] if len(config.teacher) > 1 else []
        self._readers = []
        content = xxhash.xxh3_128(repr(self._weights).encode())
        for spec, stream in zip(specs, self._streams, strict=True):
            for notice in stream.notices:
                say(notice)
            rows = first_rows(stream, spec)
            for number in range(len(rows)):
                content.update(digest(rows[number]))
            found = schema_of(rows, data, kind)
            self._readers.append(
                RowReader(data, kind, tokenizer, found, positions=positions, vocabulary=vocabulary, teachers=teachers, tally=self.tally)
            )
        self.counts = self.tally.counts()
        """The same as metrics, from the start of the run, as of the last step that was taken."""
        self.fingerprint = content.hexdigest()
        """Of the first rows of each dataset: nobody has read them all."""
        self.schema = ", ".join(dict.fromkeys(str(reader.found) for reader in self._readers))
        """Of the rows, in words."""
        self._batch_size = config.batch_size
        self._begin(0, StreamPlace(tuple(SourcePlace() for _ in self._streams), counts=self.counts))

    def go_on(self, step: int, kept: Mapping[str, Any]) -> None:
        """Take up the data where this step begins, by what `place_of` said of it."""
        self._begin(step, StreamPlace.of_json(kept))

    def _begin(self, step: int, place: StreamPlace) -> None:
        self._drawn = draw(self._streams, self._weights, seed=self._seed, place=place.sources)
        self._ready: deque[_Ready] = deque()
        self._behind, self._skip = place.sources, place.used
        self._before = {name: count - place.counts.get(name, 0.0) for name, count in self.tally.counts().items()}
        self._step, self._empty = step, 0
        self._places: tuple[tuple[int, StreamPlace, float], ...] = ((step, place, _epoch(place.sources)),)

    def place_of(self, step: int) -> dict[str, Any]:
        """Where the data of this step begins, one of the last that were taken or the next: what a checkpoint keeps."""
        return next(place for number, place, _ in self._places if number == step).as_json()

    def take(self, step: int) -> list[Example]:
        """Those of the optimizer step of this number; what lies between it and the last one that was taken is read and left.

        Raises as reading rows does, and where the data has no example for a long time.
        """
        while self._step < step:
            self._next()
        return self._next()

    def _next(self) -> list[Example]:
        while len(self._ready) < self._batch_size:
            self._read_on()
        batch = [self._ready.popleft() for _ in range(self._batch_size)]
        self._step += 1
        self._places = (*self._places[1 - PLACES :], (self._step, batch[-1].place, batch[-1].epoch))  # whole: another thread may look
        self.counts.update(self._counted())
        return [one.example for one in batch]

    def epoch(self, step: int) -> float:
        """Passes over the data that were complete before this step, of the dataset that had the fewest; a step as of `place_of`."""
        return next(epoch for number, _, epoch in self._places if number == step)

    def _counted(self) -> dict[str, float]:
        """What became of the rows from the start of the run."""
        return {name: count - self._before[name] for name, count in self.tally.counts().items()}

    def _read_on(self) -> None:
        begun, counts = self._behind, self._counted()
        drawn = list(islice(self._drawn, AHEAD))
        made = [(example, _epoch(row.place)) for row, examples in zip(drawn, self._examples(drawn), strict=True) for example in examples]
        self._behind = drawn[-1].place
        self._tell()
        last = StreamPlace(self._behind, counts=self._counted())
        for number, (example, epoch) in enumerate(made, start=1):
            if number > self._skip:
                self._ready.append(_Ready(example, last if number == len(made) else StreamPlace(begun, number, counts), epoch))
        self._skip = max(0, self._skip - len(made))
        self._empty = 0 if made else self._empty + len(drawn)
        if self._empty >= MOST_EMPTY:
            raise ConfigError(nothing_left(self.tally, self.tally.read))

    def _tell(self) -> None:
        """Say what was left out so far, at the first row and each time that there are ten times as many."""
        if self.tally.faults.num_rows >= self._tell_at:
            self._say(self.tally.faults.summary())
            while self.tally.faults.num_rows >= self._tell_at:
                self._tell_at *= 10

    def _examples(self, drawn: Sequence[Drawn]) -> list[list[Example]]:
        """The examples of each row, in order."""
        made: list[list[Example]] = [[] for _ in drawn]
        for source, reader in enumerate(self._readers):
            rows = [(at, one.where, one.row) for at, one in enumerate(drawn) if one.source == source]
            for example, numbers in reader.examples(rows):
                made[numbers[0]].append(example)
        return made


def _epoch(places: Sequence[SourcePlace]) -> float:
    """Passes that are complete, of the dataset that had the fewest."""
    return float(min(source.epoch for source in places))


def first_rows(stream: Stream, name: str) -> PlacedRows:
    """The rows that decide the schema. Raises `ConfigError` where there are none.

    Args:
        stream: of the dataset.
        name: of the dataset, for messages.
    """
    first = list(islice(stream.scan(), LOOKED_AT))
    found = [(where, row) for where, row in first if not isinstance(row, RowFault)]
    if not found:
        wrong = next((str(row.at(where)) for where, row in first if isinstance(row, RowFault)), "")
        raise ConfigError(f"{name}: none of its first {len(first)} rows can be read: {wrong}" if wrong else f"{name} holds no rows")
    return PlacedRows([row for _, row in found], [where for where, _ in found])
