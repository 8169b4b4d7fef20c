"""How a terminal of any width shows what `agentrl.objective_report` found out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agentrl.objective_report import as_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from agentrl.objective_report import Facts

CORRECTED = """\
objective:
  name: grpo
  corrections:
    - {name: tis, max: 2}
    - {name: veto}
"""

WIDE = 110
"""Columns from which on what an objective compares and needs has columns of its own."""


def listed(rows: Sequence[Facts], width: int) -> Iterator[RenderableType]:
    """Every objective, by family, with what it compares and needs."""
    names = max(len(row["name"]) for row in rows)
    columns = (names, 24, 25, None) if width >= WIDE else (names, None)
    if width >= WIDE:
        header = _grid(*columns)
        header.add_row("objective", "a rollout is compared", "a run must provide", "")
        yield _indented(header)
    for family in dict.fromkeys(row["family"] for row in rows):
        yield _heading(family)
        table = _grid(*columns)
        for row in (row for row in rows if row["family"] == family):
            name, needs = Text(row["name"], style="cyan"), ", ".join(row["needs"]) or "only rewards"
            if width >= WIDE:
                table.add_row(name, row["compares"], needs, row["summary"])
            else:
                table.add_row(name, Text.assemble(row["summary"], (f"\ncompared {row['compares']}; needs {needs}", "dim")))
        yield _indented(table)
    yield Text("\n(judge): by choice, an environment's comparison in the place of rewards.")
    yield Text("More on one: agentrl objectives show NAME. On what many share: show corrections, show kl.")


def shown(facts: Facts, width: int) -> Iterator[RenderableType]:
    """One objective, or one topic."""
    match facts.get("topic"):
        case "corrections":
            yield from _corrections(facts)
        case "kl":
            yield from _gradients(facts)
        case _:
            yield from _objective(facts, width)


def _objective(facts: Facts, width: int) -> Iterator[RenderableType]:
    yield Text.assemble((facts["name"], "bold cyan"), "  ", facts["summary"])
    yield _heading("Loss")
    yield from (_indented(Text(line)) for line in facts["formula"])
    table = _grid(8, None)
    table.add_row("source", facts["source"])
    table.add_row("compares", f"{'a rollout' if facts['data'] is None else 'texts'} {facts['compares']}")
    if facts["trl"]:
        table.add_row("in TRL", facts["trl"])
    yield _heading("Where it is from")
    yield _indented(table)
    yield _heading("What a run must provide")
    yield from _points(facts["needs"] or ["rewards"])
    own, shared = ([one for one in facts["options"] if one["shared"] is kind] for kind in (False, True))
    if own:
        yield _heading("Options")
        yield _options(own, width)
    if shared:
        yield _heading("Options that all policy-gradient objectives share")
        yield _options(shared, width)
    if facts["paper_also"]:
        yield _heading("The paper also has")
        yield from _points([f"{key}: {value}" for key, value in facts["paper_also"].items()])
    if facts["refused"]:
        yield _heading("Refused")
        yield from _points(facts["refused"])
    yield _heading("A run file")
    yield from (_indented(Text(line, style="green")) for line in facts["run_file"].splitlines())


def _corrections(facts: Facts) -> Iterator[RenderableType]:
    yield from _paragraphs(facts["about"])
    for one in facts["corrections"]:
        yield _heading(f"{one['name']}: {one['does']} {one['acts_on']}")
        yield _indented(Text(one["formula"]))
        yield from (_indented(Text(line, style="dim")) for line in one["about"])
        table = _grid(10, 7, None)
        for option in one["options"]:
            table.add_row(Text(option["name"], style="cyan"), as_yaml(option["default"]), f"{option['values']}: {option['description']}")
        if one["trl"]:
            table.add_row("in TRL", "", one["trl"])
        table.add_row("refused by", "", ", ".join(one["refused_by"]) or "none")
        yield _indented(table)
    yield Text(f"\nWithout corrections: {', '.join(facts['taken_by_none'])}.")
    yield _heading("In a run file")
    yield from (_indented(Text(line, style="green")) for line in CORRECTED.splitlines())


def _gradients(facts: Facts) -> Iterator[RenderableType]:
    yield from _paragraphs(facts["about"])
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, header_style="bold")
    for title in ("where", "estimate", "expected gradient, on policy", "off policy"):
        table.add_column(title, overflow="fold")
    for row in facts["gradients"]:
        table.add_row(row["where"], row["estimate"], row["on_policy"], row["off_policy"])
    yield Text("")
    yield _indented(table)
    yield Text("Set by kl_in, kl_estimator and kl_correction beside beta; k1 in the loss without kl_correction is refused.")


def _options(options: Sequence[Facts], width: int) -> RenderableType:
    """A row an option: its name, its default with the paper's value, what it takes and what it does."""
    names = max(20, *(len(one["name"]) for one in options))
    papers = any(one["paper"] for one in options)
    table = _grid(names, None) if width < WIDE else _grid(names, 20, *([14] if papers else []), None)
    if width >= WIDE:
        titles = ("option", "default", *(["paper"] if papers else []), "values, and what it does")
        table.add_row(*(Text(title, style="dim") for title in titles))
    for one in options:
        default, paper = "(required)" if one["required"] else as_yaml(one["default"]), one["paper"] or ""
        said = Text(one["values"], style="dim")
        if one["description"]:
            said.append(f"\n{one['description']}", style="not dim")
        name = Text(one["name"], style="cyan")
        if width < WIDE:
            name.append(f"\n= {default}" + (f"\npaper: {paper}" if paper else ""), style="default")
            table.add_row(name, said)
        else:
            table.add_row(name, default, *([paper] if papers else []), said)
    return _indented(table)


def _grid(*widths: int | None) -> Table:
    """Columns of these widths; None takes what is left."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in widths:
        table.add_column(width=width, ratio=1 if width is None else None, overflow="fold")
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, 2), expand=False)


def _points(sentences: Sequence[str]) -> Iterator[RenderableType]:
    table = _grid(1, None)
    for sentence in sentences:
        table.add_row("-", Text(sentence))
    yield _indented(table)


def _paragraphs(texts: Sequence[str]) -> Iterator[RenderableType]:
    for index, text in enumerate(texts):
        yield Text(("\n" if index else "") + text)
