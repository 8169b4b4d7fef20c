"""How a report is shown: a table in colour on a terminal, plain text where it is piped, JSON for machines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from agentrl.env_kit.finding import Finding, Report, Status

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
WIDE = 100
"""Columns from which on what was tried has a column of its own."""


def in_json(report: Report) -> str:
    """The report as one JSON object."""
    found = {"spec": report.spec, "ok": report.ok, "seconds": round(report.seconds, 3)}
    return json.dumps({**found, "checks": [asdict(finding) for finding in report.findings]}, indent=2, allow_nan=False)


def laid_out(report: Report, width: int) -> Iterator[RenderableType]:
    """The table, and what it comes to."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    if width >= WIDE:
        table.add_column("tried", ratio=2, overflow="fold")
    table.add_column("found", ratio=3, overflow="fold")
    for finding in report.findings:
        status = Text(finding.status, style=STYLES[finding.status])
        tried = [Text(finding.tried, style="dim")] if width >= WIDE else []
        table.add_row(Text(finding.check), status, *tried, _found(finding))
    yield table
    yield Text("")
    yield _summary(report)


def _found(finding: Finding) -> Text:
    text = Text(finding.got, style="dim" if finding.status == "skipped" else "")
    if finding.advice:
        text.append(f"\n{finding.advice}", style="italic dim")
    return text


def _summary(report: Report) -> Text:
    counts = Counter(finding.status for finding in report.findings)
    parts = [f"{counts[status]} {status}" for status in STYLES if counts[status]]
    verdict = ("passed", "bold green") if report.ok else ("failed", "bold red")
    return Text.assemble((report.spec, "bold"), " ", verdict, f": {', '.join(parts)}; {report.seconds:.1f} s")
