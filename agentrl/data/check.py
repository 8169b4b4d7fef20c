"""What a run would make of a dataset: its schema, some rows as they are trained, lengths, what would be left out, and faults by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.data.convert import canonical, convertible
from agentrl.data.faults import DataFaults, RowFault
from agentrl.data.prepare import BATCH_ROWS, RowReader, Tally, read, schema_of
from agentrl.data.schemas import ACCEPTED, check_row, notes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config_data import DataConfig
    from agentrl.data.encode import Encoder
    from agentrl.data.rows import Rows
    from agentrl.data.schemas import Found
    from agentrl.examples import DataKind, Example, Text

SHOWN_FAULTS = 10
PERCENTILES = (50, 90, 99, 100)
BINS = 12
"""Bars of the histogram."""
TEXT_NAMES: dict[str, tuple[str, ...]] = {"preference": ("chosen", "rejected", "reference")}
"""Names of a row's texts, where it has several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens that stand together and are treated alike, as text."""

    text: str
    trained: bool
    label: float | None = None
    """Of the step that ends with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownText:
    """A text of a row as it is trained."""

    name: str
    """`chosen`, say; empty where a row has one text."""
    pieces: tuple[Piece, ...]
    tokens: int
    trained: int
    prompt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """A row as it is trained."""

    where: str
    texts: tuple[ShownText, ...]
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long the texts are, in tokens, before long ones are cut or left out."""

    percentiles: dict[int, int]
    trained: dict[int, int]
    """The same of what is trained of each."""
    bins: tuple[tuple[int, int, int], ...]
    """(shortest, longest, texts) of each bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was found."""

    dataset: str
    rows: int
    schema: str
    kind: DataKind | None
    """What the rows are taken for; None where no objective learns from them."""
    becomes: tuple[str, ...]
    """Schemas that they can be converted to."""
    faulty: int
    fault_kinds: dict[str, int]
    faults: tuple[str, ...]
    """The first of them, a line each."""
    notes: tuple[str, ...]
    counts: dict[str, float] = field(default_factory=dict)
    """As a run counts them, where a model was named."""
    lengths: Lengths | None = None
    shown: tuple[ShownRow, ...] = ()


def check_dataset(
    rows: Rows,
    data: DataConfig,
    *,
    name: str,
    kind: DataKind | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    shown: int = 3,
    positions: int | None = None,
    vocabulary: int | None = None,
) -> DataReport:
    """Look at a dataset as a run would.

    Args:
        rows: of the dataset.
        data: the run file's section; `on_bad_row` plays no part.
        name: of the dataset, for people.
        kind: what the objective learns from; None takes the rows for what they look like.
        tokenizer: of the model; without one rows are checked and not tokenized.
        shown: rows to show.
        positions: most tokens that the model takes.
        vocabulary: number of tokens that the model has.

    Raises `ConfigError` where no row has a schema, or the objective does not take it.
    """
    found = schema_of(rows, data, kind)
    taken = kind or kind_of(found, data)
    faults = DataFaults("skip", most_shown=SHOWN_FAULTS)
    said: dict[str, None] = dict.fromkeys(rows.notices)
    tokenized: dict[str, Any] = {}
    if tokenizer is None or taken is None:
        _check_rows(rows, data, found, faults, said)
    else:
        reader = RowReader(data, taken, tokenizer, found, positions=positions, vocabulary=vocabulary, tally=Tally(faults))
        tokenized = _tokenized(rows, reader, taken, shown)
        said.update(dict.fromkeys(reader.tally.notices()))
    return DataReport(
        dataset=name,
        rows=len(rows),
        schema=str(found),
        kind=taken,
        becomes=tuple(map(str, convertible(found))),
        faulty=faults.num_rows,
        fault_kinds=dict(faults.counts.most_common()),
        faults=tuple(map(str, faults.shown)),
        notes=tuple(said),
        **tokenized,
    )


def kind_of(found: Found, data: DataConfig) -> DataKind | None:
    """What an objective that takes such rows learns from."""
    schema = data.convert or found.schema
    return next((kind for kind, accepted in ACCEPTED.items() if schema in accepted and kind != "prompts"), None)


def _check_rows(rows: Rows, data: DataConfig, found: Found, faults: DataFaults, said: dict[str, None]) -> None:
    """Collect the faults of rows that are not tokenized, and what is worth knowing of them."""
    for _, where, row in read(rows, range(len(rows))):
        try:
            if isinstance(row, RowFault):
                raise row
            row = canonical(row, data.columns)
            check_row(row, found)
            said.update(dict.fromkeys(notes(row, found)))
        except RowFault as fault:
            faults.add(fault.at(where))


def _tokenized(rows: Rows, reader: RowReader, kind: DataKind, most: int) -> dict[str, Any]:
    """Counts and lengths of a dataset, and some of its rows, for a `DataReport`."""
    lengths: list[tuple[int, int]] = []
    reader.encoder.watch = lambda texts: lengths.extend((len(text.ids), text.num_trained) for text in texts)
    shown: list[ShownRow] = []
    sums = np.zeros(3)
    for start in range(0, len(rows), BATCH_ROWS):
        for example, _ in reader.examples(read(rows, range(start, min(start + BATCH_ROWS, len(rows))))):
            sums += (1, example.num_tokens, example.num_trained)
            if len(shown) < most:
                shown.append(shown_row(example, reader.encoder, kind))
    counts = dict(zip(("data/rows", "data/tokens", "data/trained_tokens"), sums.tolist(), strict=True))
    found = lengths_of(lengths) if lengths else None
    return {"counts": counts | reader.tally.counts(), "lengths": found, "shown": tuple(shown)}


def lengths_of(lengths: Sequence[tuple[int, int]]) -> Lengths:
    """Percentiles and a histogram of (tokens, trained tokens) of some texts."""
    whole, trained = np.array(lengths, dtype=np.int64).T
    edges = np.unique(np.linspace(whole.min(), whole.max() + 1, min(BINS, int(np.ptp(whole)) + 1) + 1).astype(np.int64))
    counts, _ = np.histogram(whole, bins=edges if len(edges) > 1 else [edges[0], edges[0] + 1])
    return Lengths(
        percentiles=_percentiles(whole),
        trained=_percentiles(trained),
        bins=tuple((int(low), int(high) - 1, int(count)) for low, high, count in zip(edges, edges[1:], counts, strict=False)),
    )


def shown_row(example: Example, encoder: Encoder, kind: DataKind) -> ShownRow:
    """An example as it is trained."""
    names = TEXT_NAMES.get(kind, ("",))
    numbers = dict(example.parts) | ({"label": example.rewards[0]} if kind == "unpaired" else {})
    texts = tuple(_shown_text(text, name, encoder) for text, name in zip(example.texts, names, strict=False))
    return ShownRow(where=example.where, texts=texts, numbers=numbers)


def _shown_text(text: Text, name: str, encoder: Encoder) -> ShownText:
    marked = text.trained if text.labels is None else ~np.isnan(text.labels)
    borders = np.flatnonzero(marked[1:] != marked[:-1]) + 1
    pieces = tuple(_piece(text, start, end, marked, encoder) for start, end in _spans(borders, len(text.ids)))
    return ShownText(name=name, pieces=pieces, tokens=len(text.ids), trained=int(np.count_nonzero(marked)), prompt=text.prompt_length)


def _piece(text: Text, start: int, end: int, marked: np.ndarray, encoder: Encoder) -> Piece:
    label = None if text.labels is None or not marked[start] else float(text.labels[start])
    return Piece(text=encoder.text(text.ids[start:end]), trained=bool(marked[start]), label=label)


def _spans(borders: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
    edges = [0, *borders.tolist(), length]
    return pairwise(edges)


def _percentiles(values: np.ndarray) -> dict[int, int]:
    return {share: int(np.percentile(values, share, method="higher")) for share in PERCENTILES}
