"""What a check of an environment found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Status = Literal["ok", "warning", "failed", "skipped"]

MOST_SHOWN = 3
MOST_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the report."""

    check: str
    status: Status
    tried: str
    """What was done."""
    got: str
    """What came of it; for a skipped check, why it was skipped."""
    advice: str = ""
    """What to do about it, where there is something to do."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures, for machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found."""

    spec: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings and skipped checks are told, and fail nothing."""
        return all(finding.status != "failed" for finding in self.findings)


def judged(
    check: str,
    tried: str,
    got: str,
    *,
    faults: Sequence[str] = (),
    warnings: Sequence[str] = (),
    advice: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Finding:
    """A finding that fails on any fault and warns on any warning; `got` is what is said where there is neither.

    Args:
        check: its name.
        tried: what was done.
        got: what came of it.
        faults: what is wrong.
        warnings: what may be meant so.
        advice: what to do about it; said only where there is something to do.
        facts: figures.
    """
    status: Status = "failed" if faults else "warning" if warnings else "ok"
    said = "\n".join(counted([*faults, *warnings])) if faults or warnings else got
    return Finding(check=check, status=status, tried=tried, got=said, advice=advice if faults or warnings else "", facts=facts or {})


def skipped(check: str, why: str, tried: str = "") -> Finding:
    """A check that could not be made."""
    return Finding(check=check, status="skipped", tried=tried, got=why)


def counted(texts: Iterable[str]) -> list[str]:
    """The first few different texts, each with how often it came; the rest as a number."""
    counts = Counter(text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}..." for text in texts)
    shown = [text if count == 1 else f"{text} ({count} times)" for text, count in list(counts.items())[:MOST_SHOWN]]
    more = len(counts) - len(shown)
    return [*shown, f"and {more} more"] if more > 0 else shown


def plural(count: int, noun: str) -> str:
    """`1 task`, `8 tasks`, `1,000 tasks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
