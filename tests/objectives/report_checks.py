"""The columns of the report: each a pure function from a row to a cell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import report_enumeration as world
import report_learner
from report_cells import Cell, gap, verdict
from report_hand import checked
from report_texts import TextRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from report_rows import Case, Row


def by_hand(row: Row | TextRow) -> Cell:
    """A value worked out by hand, for two rollouts of three tokens."""
    if isinstance(row, TextRow):
        return row.hand()
    return checked(row.options, row.hand())


def enumerated(row: Row | TextRow) -> Cell:
    """Expected loss and gradient against the paper's, on and off policy, and what the gradient is equal to."""
    if isinstance(row, TextRow):
        return row.enumeration()
    gaps = [error for case in row.cases for error in case_gaps(case)]
    gaps += [claim.error() for claim in row.claims]
    return verdict(gaps, note=", ".join(claim.says for claim in row.claims))


def case_gaps(case: Case) -> list[float]:
    """Relative errors in each of the case's worlds; infinite where what it is about has no effect."""
    gaps = []
    for where in case.worlds:
        ours, paper = world.expected(where, case.options, case.paper, groups=case.groups, size=case.texts)
        gaps += [gap(ours.logits, paper.logits), gap(ours.values, paper.values)]
        # On policy the expected loss of a centred advantage is 0: measured against the gradient then.
        gaps.append(abs(ours.loss - paper.loss) / max(abs(paper.loss), float(np.linalg.norm(paper.logits))))
    if (
        case.differs_from is not None
        and gap(ours.logits, world.expected(case.worlds[-1], case.differs_from, groups=case.groups, size=case.texts)[0].logits) < 1e-3
    ):
        gaps.append(math.inf)
    return gaps


def differenced(row: Row | TextRow) -> Cell:
    """The loss's gradient against central differences."""
    if isinstance(row, TextRow):
        return row.differences()
    return row.differences(row.options)


def against_trl(row: Row | TextRow) -> Cell:
    """TRL's value and gradient on its own batches."""
    return row.trl()


def cut_and_ordered(row: Row | TextRow) -> Cell:
    """The real learner's gradient, however the step is cut, packed and ordered."""
    return report_learner.invariance(row.options | row.learner, row.learner_note)


CHECKS: dict[str, Callable[[Row | TextRow], Cell]] = {
    "by hand": by_hand,
    "enumeration": enumerated,
    "differences": differenced,
    "TRL": against_trl,
    "cuts, orders": cut_and_ordered,
}


def on_two_ranks(rows: tuple[Row | TextRow, ...]) -> dict[str, Cell]:
    """The last column, of all rows at once, by title."""
    return report_learner.two_ranks({row.title: row.options | row.learner for row in rows})
