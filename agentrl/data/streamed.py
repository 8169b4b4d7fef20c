"""Examples of datasets that are read as a run needs them, a batch a step, going on exactly where a run stopped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from agentrl.data.faults import DataFaults, RowFault
from agentrl.data.prepare import RowReader, Tally, nothing_left, schema_of
from agentrl.data.rows import ObjectRows
from agentrl.data.streams import SourcePlace, draw, open_stream
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.data.streams import Drawn, Stream
    from agentrl.examples import DataKind, Example

AHEAD = 64
"""Rows that are tokenized at once."""
LOOKED_AT = 100
MOST_EMPTY = 100_000
"""Rows in a row of which none becomes an example, after which it is not to be expected that one will."""


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """How far the datasets of a run were used."""

    sources: tuple[SourcePlace, ...]
    """Where the row that comes next is drawn, or that of which some examples are used."""
    used: int = 0
    """Examples of that row that are used."""

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sources": [list(one) for one in self.sources], "used": self.used}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> StreamPlace:
        """Back from a checkpoint."""
        return cls(tuple(SourcePlace(*one) for one in value["sources"]), value["used"])


@dataclass(frozen=True, slots=True)
class _Ready:
    """An example that waits for its step, and where to go on behind it."""

    example: Example
    place: StreamPlace


class StreamedBatches:
    """The examples of each step of a run whose data is streamed.

    Args:
        config: the run file.
        kind: what the objective learns from.
        tokenizer: of the model.
        say: takes what a person should know.
        step: the first that is taken.
        place: where the data of that step begins, of a `StreamedBatches` that has taken those before it; None is the start.
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
        step: int = 0,
        place: StreamPlace | None = None,
        positions: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        data = config.data
        if data.packing != "none":
            raise ConfigError(f"data.packing is {data.packing}, which takes all rows, and data.streaming is true: set data.packing=none")
        specs = [one.dataset for one in config.datasets] or [str(config.dataset)]
        weights = [one.weight for one in config.datasets] or None
        streams = [open_stream(spec) for spec in specs]
        self.tally = Tally(DataFaults(data.on_bad_row))
        """What became of the rows so far."""
        teachers = [one.name for one in config.teacher] if len(config.teacher) > 1 else []
        self._readers = []
        for stream in streams:
            for notice in stream.notices:
                say(notice)
            found = schema_of(first_rows(stream), data, kind)
            self._readers.append(
                RowReader(data, kind, tokenizer, found, positions=positions, vocabulary=vocabulary, teachers=teachers, tally=self.tally)
            )
        self.counts = self.tally.counts()
        """The same as metrics, as of the last step that was taken."""
        self.fingerprint = ""
        """Nobody has read all rows."""
        self.schema = ", ".join(dict.fromkeys(str(reader.found) for reader in self._readers))
        """Of the rows, in words."""
        self._batch_size = config.batch_size
        self.place = place or StreamPlace(tuple(SourcePlace() for _ in streams))
        """Behind the last step that was taken: what a checkpoint keeps."""
        self._drawn = draw(streams, weights, seed=config.seed if data.shuffle else None, place=self.place.sources)
        self._ready: deque[_Ready] = deque()
        self._behind = self.place.sources
        self._skip = self.place.used
        self._step, self._empty = step, 0

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
        self.place = batch[-1].place
        self._step += 1
        self.counts.update(self.tally.counts())
        return [one.example for one in batch]

    def epoch(self, step: int) -> float:
        """Passes over the data that are complete: of the dataset that had the fewest."""
        return float(min(source.epoch for source in self.place.sources))

    def _read_on(self) -> None:
        drawn = list(islice(self._drawn, AHEAD))
        made = self._examples(drawn)
        for one, examples in zip(drawn, made, strict=True):
            before = self._behind
            self._behind = one.place
            for number, example in enumerate(examples):
                last = number == len(examples) - 1
                place = StreamPlace(one.place) if last else StreamPlace(before, number + 1)
                if self._skip:
                    self._skip -= 1
                else:
                    self._ready.append(_Ready(example, place))
        self._empty = 0 if any(made) else self._empty + len(drawn)
        if self._empty >= MOST_EMPTY:
            raise ConfigError(nothing_left(self.tally, self.tally.read))

    def _examples(self, drawn: Sequence[Drawn]) -> list[list[Example]]:
        """The examples of each row, in order."""
        made: list[list[Example]] = [[] for _ in drawn]
        for source, reader in enumerate(self._readers):
            rows = [(at, one.where, one.row) for at, one in enumerate(drawn) if one.source == source]
            for example, numbers in reader.examples(rows):
                made[numbers[0]].append(example)
        return made


def first_rows(stream: Stream) -> ObjectRows:
    """The rows that decide the schema. Raises `ConfigError` where there are none."""
    found = list(_readable(stream))
    if not found:
        raise ConfigError("a dataset that is streamed has no row among its first that can be read")
    return ObjectRows(found)


def _readable(stream: Stream) -> Iterator[dict[str, Any]]:
    for _, row in islice(stream.scan(), LOOKED_AT):
        if not isinstance(row, RowFault):
            yield row
