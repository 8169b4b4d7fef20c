"""A `DataReport` laid out for people: colours on a terminal, [[brackets]] around what is trained elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.data.check import DataReport, Lengths, Piece, ShownRow, ShownText

BAR = 40
"""Characters of the longest bar."""
TRAINED, CONTEXT, HEAD, BAD = "bold green", "dim", "bold", "red"
KINDS = {
    "supervised": "sft and other supervised objectives",
    "preference": "dpo, reward_model and other objectives of pairs",
    "unpaired": "kto, bco and other objectives of single answers",
    "stepwise": "process reward models",
}
NOTHING = "no offline objective: prompts without answers, for rollouts"
FEWER = {"data/truncated": "cut to data.max_length", "data/dropped_long": "left out as too long"}


def laid_out(report: DataReport, *, colours: bool) -> Iterator[Any]:
    """What to print, part by part.

    Args:
        report: of `check_dataset`.
        colours: whether colours are seen; else what is trained stands in [[brackets]].
    """
    yield from _head(report)
    if report.shown:
        yield Text()
        yield Text("Rows, with what is trained " + ("in green" if colours else "in [[brackets]]"), style=HEAD)
        for row in report.shown:
            yield from _row(row, colours=colours)
    if report.lengths is not None:
        yield Text()
        yield from _lengths(report.lengths)
    yield from _faults(report)


def _head(report: DataReport) -> Iterator[Any]:
    table = Table.grid(padding=(0, 2))
    table.add_row("dataset", Text(report.dataset, style=HEAD))
    table.add_row("rows", f"{report.rows:,}")
    table.add_row("schema", Text(report.schema, style=HEAD))
    table.add_row("for", KINDS.get(report.kind or "", NOTHING))
    if report.becomes:
        table.add_row("can become", f"{', '.join(report.becomes)}  (data.convert)")
    if report.counts:
        counts = report.counts
        share = counts["data/trained_tokens"] / max(1.0, counts["data/tokens"])
        table.add_row("left", f"{counts['data/rows']:,.0f} rows of {counts['data/tokens']:,.0f} tokens, {share:.0%} of them trained")
        cut = [f"{counts[name]:,.0f} {said}" for name, said in FEWER.items() if counts[name]]
        if cut:
            table.add_row("lengths", ", ".join(cut))
    if report.faulty:
        table.add_row("faults", Text(f"{report.faulty:,} of {report.rows:,} rows", style=BAD))
    yield table
    for note in report.notes:
        yield Text(f"note: {note}")


def _row(row: ShownRow, *, colours: bool) -> Iterator[Any]:
    numbers = "".join(f", {name} {value:g}" for name, value in row.numbers.items())
    for text in row.texts:
        name = f" {text.name}" if text.name else ""
        head = f"{row.where}{name}{numbers}: {text.tokens} tokens, {text.trained} trained, prompt of {text.prompt}"
        yield Text()
        yield Text(f"-- {head}", style=HEAD)
        yield _shown(text, colours=colours)


def _shown(text: ShownText, *, colours: bool) -> Text:
    shown = Text()
    for piece in text.pieces:
        if colours:
            shown.append(piece.text + _label(piece), style=TRAINED if piece.trained else CONTEXT)
        else:
            shown.append(f"[[{piece.text}{_label(piece)}]]" if piece.trained else piece.text)
    return shown


def _label(piece: Piece) -> str:
    return "" if piece.label is None else f" <label {piece.label:g}>"


def _lengths(lengths: Lengths) -> Iterator[Any]:
    names = {100: "longest"}
    parts = [f"{names.get(share, f'{share}%')} {tokens:,}" for share, tokens in lengths.percentiles.items()]
    trained = [f"{names.get(share, f'{share}%')} {tokens:,}" for share, tokens in lengths.trained.items()]
    yield Text("Tokens of a text", style=HEAD)
    yield Text(f"  all      {'   '.join(parts)}")
    yield Text(f"  trained  {'   '.join(trained)}")
    most = max(count for _, _, count in lengths.bins)
    width = max(len(f"{low:,}-{high:,}") for low, high, _ in lengths.bins)
    for low, high, count in lengths.bins:
        bar = "#" * round(BAR * count / most) or ("." if count else "")
        name = f"{low:,}-{high:,}" if high > low else f"{low:,}"
        yield Text(f"  {name:>{width}}  {bar} {count:,}")


def _faults(report: DataReport) -> Iterator[Any]:
    if not report.faulty:
        return
    yield Text()
    yield Text("Faults", style=HEAD)
    for kind, count in report.fault_kinds.items():
        yield Text(f"  {count:,} x {kind}", style=BAD)
    yield Text("the first of them:")
    for fault in report.faults:
        yield Text(f"  {fault}")
