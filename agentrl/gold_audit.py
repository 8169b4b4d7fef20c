"""Every gold of a data set graded against itself before anything is learned from it.

A gold that is missing, or that its grader cannot read, makes every answer to its row unscorable or wrong: such rows are named, counted,
and left out or refused. A grader is asked by a function, so this is for any: `audit(rows, lambda row: "" if ... else "why not")`.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentrl.errors import AgentRLError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

OnBadGold = Literal["skip", "refuse"]

MOST_BAD_SHARE = 0.1
"""With a larger share of bad golds a data set is refused even where they may be skipped: the grader or a column must be wrong."""
MOST_NAMED = 5
"""Rows that a message names for each kind of fault."""
THREADS = 2
_AHEAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BadGold:
    """A row whose gold cannot be graded against."""

    index: int
    """Of the row, from 0."""
    row: str
    """The row's `id`, or its index where it has none."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldReport:
    """What an audit found."""

    checked: int
    """Rows that were looked at."""
    unchecked: bool
    """Whether time ran out before the last row."""
    bad: tuple[BadGold, ...]

    @property
    def share(self) -> float:
        """Share of bad golds among those checked."""
        return len(self.bad) / self.checked if self.checked else 0.0

    def summary(self) -> str:
        """One line: how many golds are bad, and why, with the first rows of each kind; says so where all are good."""
        left = " (time ran out before the last row; what was not checked is graded when its turn comes)" if self.unchecked else ""
        if not self.bad:
            return f"all {self.checked} golds that were checked grade as correct against themselves{left}"
        kinds: dict[str, list[BadGold]] = {}
        for one in self.bad:
            kinds.setdefault(one.reason.partition(":")[0], []).append(one)
        said = [_kind(group) for group in sorted(kinds.values(), key=len, reverse=True)]
        return f"{len(self.bad)} of {self.checked} golds cannot be graded against{left}: {'; '.join(said)}"


def audit(
    rows: Iterable[Mapping[str, Any]],
    gold_fault: Callable[[Mapping[str, Any]], str],
    *,
    within_s: float | None = None,
    threads: int = THREADS,
) -> GoldReport:
    """Ask of each row why its gold cannot be graded against.

    Args:
        rows: of the data set.
        gold_fault: the reason for a row, empty where its gold grades as correct against itself; called from several threads. What it
            raises is the row's fault, but for agentrl's own errors, which end the audit.
        within_s: stop looking after so long; by default all rows are looked at.
        threads: rows looked at at once.
    """
    deadline = None if within_s is None else time.monotonic() + within_s
    bad: list[BadGold] = []
    checked = 0
    unchecked = False
    with ThreadPoolExecutor(threads, thread_name_prefix="gold-audit") as pool:
        for index, (row, reason) in enumerate(_asked(rows, gold_fault, pool)):
            checked += 1
            if reason:
                bad.append(BadGold(index=index, row=str(row.get("id", index)), reason=reason))
            if deadline is not None and time.monotonic() > deadline:
                unchecked = True
                break
    return GoldReport(checked=checked, unchecked=unchecked, bad=tuple(bad))


def good_rows(
    rows: list[dict[str, Any]], report: GoldReport, *, what: str, on_bad_gold: OnBadGold, most_bad_share: float = MOST_BAD_SHARE
) -> list[dict[str, Any]]:
    """The rows whose golds are not bad. Raises `ConfigError` where bad golds are refused, or are more than may be skipped.

    Args:
        rows: that the report is about.
        report: from `audit`.
        what: the data set, for messages.
        on_bad_gold: leave rows with bad golds out, or refuse the data set if there is one.
        most_bad_share: largest share of bad golds that are left out.
    """
    if not report.bad:
        return rows
    if on_bad_gold == "refuse":
        raise ConfigError(f"{what}: {report.summary()}. Mend these rows, or leave them out with on_bad_gold=skip")
    if report.share > most_bad_share:
        raise ConfigError(
            f"{what}: {report.summary()}. That is more than {most_bad_share:.0%}: check the gold's column and the grader, or mend the rows"
        )
    bad = {one.index for one in report.bad}
    return [row for index, row in enumerate(rows) if index not in bad]


def _kind(group: list[BadGold]) -> str:
    named = ", ".join(one.row for one in group[:MOST_NAMED]) + (", ..." if len(group) > MOST_NAMED else "")
    return f"{len(group)} x {group[0].reason[:200]!r} ({'row' if len(group) == 1 else 'rows'} {named})"


def _asked(
    rows: Iterable[Mapping[str, Any]], gold_fault: Callable[[Mapping[str, Any]], str], pool: ThreadPoolExecutor
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each row with its fault, in order, some rows ahead of the one that is given."""
    waiting: deque[tuple[Mapping[str, Any], Future[str]]] = deque()
    for row in rows:
        waiting.append((row, pool.submit(_fault, gold_fault, row)))
        if len(waiting) > _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _fault(gold_fault: Callable[[Mapping[str, Any]], str], row: Mapping[str, Any]) -> str:
    try:
        return gold_fault(row)
    except AgentRLError:
        raise
    except Exception as error:  # the boundary to a user's grader
        return f"the grader raised {type(error).__name__}: {error}"
