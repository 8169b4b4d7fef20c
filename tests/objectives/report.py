"""Every objective against independent oracles: `make objectives-report`.

Prints a table: a row for each objective, correction and option, a column for each kind of proof. Ends with status 1 if any cell fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from report_cells import EXACT, Cell
from report_checks import CHECKS, on_two_ranks
from report_differences import BOUND
from report_option_rows import ROWS
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from report_rows import Row

RANKS = "2 ranks"
COLUMNS = (*CHECKS, RANKS)
WIDE = ("enumeration", "TRL")
"""Columns with room for words."""
NARROWEST = 140
"""Characters of a line; a terminal with fewer breaks them."""
Results = dict[str, dict[str, Cell]]
"""Cells by row and column."""

LEGEND = {
    "ok 3e-16": "agrees: the largest relative error of all that the cell compares; 0 is bit for bit",
    "by hand": "the loss, and advantages, of two rollouts of three tokens, against arithmetic written out from the paper's formula",
    "enumeration": """expected loss and gradient over every step that a vocabulary of three tokens gives, on and off policy, against the
        paper's gradient written out in numpy; and what the gradient was shown to be equal to: dJ, that of the expected reward times a known
        factor, on policy, and with clips and masks off also off policy, of whole completions or of such of 1 token""",
    "differences": f"the gradient in log-probs, entropies and values against five-point differences of the loss, within {BOUND:g}",
    "TRL": """loss and gradient that TRL's own code gave for the same batches; where it differs from the paper, ours against the paper's
        formula on TRL's inputs""",
    "cuts, orders": """the real learner's gradient of each parameter: one micro-batch, several, one a rollout; groups and members in
        other orders; packed with shared prompts, forks and two turns""",
    RANKS: "the same on two gloo ranks against one",
}


def guarded(check: Callable[[Row], Cell], row: Row) -> Cell:
    """A check that breaks down fails, and the others go on."""
    try:
        return check(row)
    except Exception as error:
        return Cell(status="FAIL", note=f"{type(error).__name__}: {error}")


def run(rows: Sequence[Row], console: Console) -> Results:
    """All cells of the rows."""
    results: Results = {}
    with console.status("") as status:
        for row in rows:
            status.update(row.title)
            results[row.title] = {name: guarded(check, row) for name, check in CHECKS.items()}
        status.update(RANKS)
        try:
            ranks = on_two_ranks(tuple(rows))
        except Exception as error:
            ranks = dict.fromkeys(results, Cell(status="FAIL", note=f"{type(error).__name__}: {error}"))
    for title, cell in ranks.items():
        results[title][RANKS] = cell
    return results


def one_line(text: str) -> str:
    return " ".join(text.split())


def error_of(cell: Cell) -> str:
    return "" if cell.error is None else " 0" if cell.error == 0 else f" {cell.error:.0e}"


def words(cell: Cell) -> str:
    """A cell in one line."""
    if cell.status == "none":
        return cell.note
    return cell.status + error_of(cell) + (f": {cell.note}" if cell.note else "")


class Notes:
    """Numbers the notes of narrow columns; equal ones share a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, note: str) -> int:
        return self.numbers.setdefault(note, len(self.numbers) + 1)


def rendered(cell: Cell, notes: Notes, *, inline: bool) -> Text:
    """A cell for the terminal: the verdict, and its note or the number of it."""
    if cell.status == "none":
        return Text(cell.note, style="dim")
    text = Text().append(cell.status + error_of(cell), style="green" if cell.status == "ok" else "bold red")
    if cell.note:
        text.append(f"  {cell.note}" if inline else f" [{notes.number(cell.note)}]", style="dim")
    return text


def table_of(rows: Sequence[Row], results: Results, notes: Notes) -> Table:
    """The columns with room for words say them."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, no_wrap=name not in WIDE, min_width=None if name in WIDE else 12, max_width=44)
    for index, row in enumerate(rows):
        if index == 0 or row.section != rows[index - 1].section:
            if index:
                table.add_section()
            table.add_row(Text(row.section, style="bold cyan"))
        table.add_row(row.title, *[rendered(results[row.title][name], notes, inline=name in WIDE) for name in COLUMNS])
    return table


def markdown(rows: Sequence[Row], results: Results) -> str:
    """The same table, versions and legend."""
    lines = ["# Objectives against independent oracles", "", versions(), ""]
    lines += [f"- {name}: {one_line(meaning)}" for name, meaning in LEGEND.items()]
    section = ""
    for row in rows:
        if row.section != section:
            section = row.section
            lines += ["", f"## {section}", "", f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        cells = [words(results[row.title][name]).replace("|", "\\|").replace("\n", " ") for name in COLUMNS]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", summary(results), ""])


def versions() -> str:
    stored = json.loads((Path(__file__).parent / "trl_reference.json").read_text())
    removed = sorted({entry["trl"] for entry in stored["removed"]})
    found = [f"{name} {version(name)}" for name in ("agentrl", "torch", "transformers", "accelerate", "numpy")]
    return ", ".join([f"Python {platform.python_version()}", *found, f"stored values of TRL {stored['trl']} and {', '.join(removed)}"])


def summary(results: Results) -> str:
    cells = [cell for row in results.values() for cell in row.values()]
    count = {status: sum(cell.status == status for cell in cells) for status in ("ok", "FAIL", "none")}
    return f"{len(results)} rows: {count['ok']} cells ok, {count['FAIL']} failed, {count['none']} without a counterpart; bound {EXACT:g}"


def report(rows: Sequence[Row], results: Results, console: Console) -> int:
    """Print everything; the exit status."""
    notes = Notes()
    console.print(table_of(rows, results, notes))
    legend = Table.grid(padding=(0, 2))
    for note, number in notes.numbers.items():
        legend.add_row(f"[{number}]", note)
    for name, meaning in LEGEND.items():
        legend.add_row(Text(name, style="bold"), one_line(meaning))
    console.print(legend)
    console.print(versions(), style="dim", highlight=False)
    failed = any(cell.status == "FAIL" for row in results.values() for cell in row.values())
    console.print(summary(results), style="bold red" if failed else "bold green", highlight=False)
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--row", action="append", metavar="TITLE", help="only this row; may be given several times")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unknown = sorted(set(options.row or ()) - {row.title for row in ROWS})
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; rows: {', '.join(row.title for row in ROWS)}")
    rows = [row for row in ROWS if options.row is None or row.title in options.row]
    console = Console(width=max(NARROWEST, Console().width) if sys.stdout.isatty() else 180)
    started = time.perf_counter()
    results = run(rows, console)
    status = report(rows, results, console)
    console.print(f"{time.perf_counter() - started:.0f} s", style="dim")
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows, results))
    return status


if __name__ == "__main__":
    sys.exit(main())
