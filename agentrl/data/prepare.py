"""From a run file's dataset to tokenized rows: read, checked, converted, rendered, tokenized, and packed where that is asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agentrl.data.convert import canonical, check_kind, rows_for
from agentrl.data.encode import NOTES, Encoded, Encoder, Placed
from agentrl.data.faults import DataFaults, RowFault
from agentrl.data.packing import SPLITS, packed
from agentrl.data.prepared import Prepared
from agentrl.data.runs import datasets_of_run
from agentrl.data.schemas import check_row, detect_all, notes
from agentrl.data.table import TableWriter
from agentrl.data.template_file import check_template, with_template
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.config_data import DataConfig
    from agentrl.data.rows import Rows
    from agentrl.data.schemas import Found
    from agentrl.data.table import Examples
    from agentrl.examples import DataKind, Example

BATCH_ROWS = 1024
"""Rows that are tokenized at once."""
LOOKED_AT = 100
"""First rows that decide the schema."""


@dataclass(slots=True)
class Tally:
    """What became of the rows that were read."""

    faults: DataFaults
    read: int = 0
    dropped_long: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    said: dict[str, None] = field(default_factory=dict)
    """What is worth knowing of the rows' schema, each once."""

    def counts(self) -> dict[str, float]:
        """As metrics."""
        found = {
            "data/read": self.read,
            "data/skipped": self.faults.num_rows,
            "data/truncated": self.notes["truncated"],
            "data/dropped_long": self.dropped_long,
        }
        return {name: float(number) for name, number in found.items()}

    def lines(self) -> Iterator[str]:
        """What a person should know, a message each."""
        if self.faults.num_rows:
            yield self.faults.summary()
        yield from self.notices()

    def notices(self) -> Iterator[str]:
        """The same of the rows that are left."""
        yield from self.said
        if self.dropped_long:
            why = "data.long_rows drops them, or would keep nothing of them that is trained"
            yield f"{_rows(self.dropped_long)} left out: longer than data.max_length, and {why}"
        yield from (f"{_rows(number)} {NOTES[note]}" for note, number in self.notes.most_common())


class RowReader:
    """Makes examples of rows, batch after batch; the same for a dataset that is read whole and one that is streamed.

    Args:
        data: the run file's section.
        kind: what the objective learns from.
        tokenizer: of the model.
        found: the schema of the dataset.
        positions: most tokens that the model takes; None where nothing limits it.
        vocabulary: number of tokens that the model has, which ids of tokenized rows are held to.
        tally: counts rows; by default one of its own, which takes rows that are wrong as `data.on_bad_row` says.
        teachers: names that a row's column `teacher` may have.

    Raises `ConfigError` where the objective does not take such rows.
    """

    def __init__(
        self,
        data: DataConfig,
        kind: DataKind,
        tokenizer: PreTrainedTokenizerBase,
        found: Found,
        *,
        positions: int | None = None,
        vocabulary: int | None = None,
        tally: Tally | None = None,
        teachers: Sequence[str] = (),
    ) -> None:
        self.found, self.becomes = found, check_kind(kind, found, data.convert)
        self.tally = tally or Tally(DataFaults(data.on_bad_row))
        self._data, self._kind = data, kind
        if data.packing != "none" and kind != "supervised":
            raise ConfigError(
                f"data.packing is {data.packing}, and the objective learns from {kind} data, which cannot be packed: set it to none"
            )
        self.length = length_of(data, positions)
        most = None if data.packing in SPLITS else self.length
        settings = data.model_copy(update={"max_length": most})
        templated = with_template(tokenizer, data)
        if self.becomes.conversational:
            check_template(templated, data)
        self.encoder = Encoder(
            templated,
            settings,
            max_token=None if vocabulary is None else vocabulary - 1,
            teachers=teachers,
        )

    def examples(self, rows: Iterable[tuple[int, str, Any]]) -> list[tuple[Example, list[int]]]:
        """The examples of some rows, each with its row's number.

        Args:
            rows: number, place and content each; in place of the content the fault that it was read with.

        Raises `RowFault` for a row that is wrong where `on_bad_row` is error, `ConfigError` where settings and rows do not fit.
        """
        placed: list[Placed] = []
        numbers: list[int] = []
        for number, where, row in rows:
            self.tally.read += 1
            try:
                made = self._converted(row)
            except RowFault as fault:
                self.tally.faults.add(fault.at(where))
                continue
            placed += [Placed(row=one, found=self.becomes, where=where) for one in made]
            numbers += [number] * len(made)
        return list(self._kept(zip(self.encoder.encode(placed), numbers, strict=True)))

    def _converted(self, row: Any) -> list[dict[str, Any]]:
        if isinstance(row, RowFault):
            raise row
        row = canonical(row, self._data.columns)
        check_row(row, self.found)
        self.tally.said.update(dict.fromkeys(notes(row, self.found)))
        if self.found == self.becomes:  # what `rows_for` would give, at no cost
            return [row]
        return rows_for(self._kind, row, self.found, self._data.convert)

    def _kept(self, encoded: Iterable[tuple[Encoded | RowFault, int]]) -> Iterator[tuple[Example, list[int]]]:
        for one, number in encoded:
            if isinstance(one, RowFault):
                self.tally.faults.add(one)
                continue
            self.tally.notes.update(one.notes)
            if one.example is None:
                self.tally.dropped_long += 1
            else:
                yield one.example, [number] * len(one.example.texts)


def prepare(
    config: RunConfig,
    kind: DataKind,
    tokenizer: PreTrainedTokenizerBase,
    split: Literal["train", "eval"] = "train",
    *,
    say: Callable[[str], None] = lambda _: None,
    positions: int | None = None,
    vocabulary: int | None = None,
) -> Prepared:
    """The tokenized rows of a run, to train on or to evaluate on.

    Args:
        config: the run file.
        kind: what the objective learns from.
        tokenizer: of the model.
        split: which rows.
        say: takes what a person should know.
        positions: most tokens that the model takes, which is the length where `data.max_length` names none.
        vocabulary: number of tokens that the model has.

    Raises `ConfigError` where there are no rows, or a row is wrong, naming file, row and field.
    """
    mixture = datasets_of_run(config, split)
    teachers = [one.name for one in config.teacher] if len(config.teacher) > 1 else []
    parts = [
        prepare_rows(rows, config.data, kind, tokenizer, say=say, positions=positions, vocabulary=vocabulary, teachers=teachers)
        for rows in mixture.parts
    ]
    prepared = Prepared(parts, mixture.weights)
    prepared.schema = ", ".join(dict.fromkeys(str(schema_of(rows, config.data, kind)) for rows in mixture.parts))
    return prepared


def prepare_rows(
    rows: Rows,
    data: DataConfig,
    kind: DataKind,
    tokenizer: PreTrainedTokenizerBase,
    *,
    say: Callable[[str], None] = lambda _: None,
    positions: int | None = None,
    vocabulary: int | None = None,
    teachers: Sequence[str] = (),
) -> Examples:
    """The tokenized rows of one dataset that is open; see `prepare`."""
    for notice in rows.notices:
        say(notice)
    found = schema_of(rows, data, kind)
    reader = RowReader(data, kind, tokenizer, found, positions=positions, vocabulary=vocabulary, teachers=teachers)
    with TableWriter() as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            writer.add(reader.examples(read(rows, range(start, min(start + BATCH_ROWS, len(rows))))))
        examples = writer.examples(rows.where, reader.tally.counts(), str(found))
    for line in reader.tally.lines():
        say(line)
    if not len(examples):
        raise ConfigError(f"{rows.where(0).rpartition(', ')[0]}: {nothing_left(reader.tally, len(rows))}")
    return packed(examples, data.packing, reader.length)


def schema_of(rows: Rows, data: DataConfig, kind: DataKind | None = None) -> Found:
    """The schema that most of the first rows have. Raises `ConfigError` where they have none, or one that the objective does not take."""
    first = read(rows, range(min(LOOKED_AT, len(rows))))
    readable: list[dict[str, Any]] = []
    for _, where, row in first:
        try:
            readable += [] if isinstance(row, RowFault) else [canonical(row, data.columns)]
        except RowFault:
            continue  # of the row, which is told when its turn comes
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if not readable:
        raise next(row for _, _, row in read(rows, range(1)) if isinstance(row, RowFault))
    try:
        found = detect_all(readable, kind)
        if kind is not None:
            check_kind(kind, found, data.convert)
    except ConfigError as error:
        raise ConfigError(f"{rows.where(0)}: {error}") from None
    return found


def read(rows: Rows, numbers: Iterable[int]) -> Iterator[tuple[int, str, Any]]:
    """Rows with their numbers and places; in place of one that cannot be read its fault."""
    for number in numbers:
        where = rows.where(number)
        try:
            row: Any = rows[number]
        except RowFault as fault:
            row = fault.at(where)
        yield number, where, row


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def length_of(data: DataConfig, positions: int | None) -> int | None:
    """Most tokens of a text. Raises `ConfigError` where more are asked for than the model takes."""
    if data.max_length is not None and positions is not None and data.max_length > positions:
        raise ConfigError(f"data.max_length is {data.max_length}, and the model takes at most {positions} tokens: lower it")
    return positions if data.max_length is None else data.max_length


def nothing_left(tally: Tally, read: int) -> str:
    """Why no row of a dataset is left."""
    reasons = []
    if tally.faults.num_rows:
        reasons.append(f"{tally.faults.num_rows} are wrong ({tally.faults.shown[0]})")
    if tally.dropped_long:
        reasons.append(f"{tally.dropped_long} are longer than data.max_length")
    left = read - tally.faults.num_rows - tally.dropped_long
    if left > 0:
        reasons.append(f"{left} have nothing that the objective learns from")
    return f"no row is left of the {read} in the dataset: {', and '.join(reasons)}"
