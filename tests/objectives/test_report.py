"""The checks of `make objectives-report`, and that they can fail."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

import report
import report_checks
from report_cells import Cell, gap, verdict
from report_gold import FOREIGN
from report_option_rows import CORRECTIONS, OPTIONS, ROWS
from report_rows import OBJECTIVES
from report_self import OWN
from report_teacher import TAUGHT_TEXTS
from report_texts import TEXTS, TextRow

from agentrl.objectives.corrections import CORRECTIONS as REGISTERED_CORRECTIONS
from agentrl.objectives.registry import BUILT_IN

GRPO, TIS = OBJECTIVES[0], CORRECTIONS[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_every_check_of_a_row(row):
    cells = {name: check(row) for name, check in report_checks.CHECKS.items()}
    assert {name: report.words(cell) for name, cell in cells.items() if cell.status == "FAIL"} == {}
    assert all(cell.note for cell in cells.values() if cell.status == "none"), "a cell without a check gives its reason"
    assert {name for name, cell in cells.items() if cell.status == "none"} <= {"TRL"} | (
        {"enumeration"} if isinstance(row, TextRow) else set()
    )


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one_in_every_row():
    cells = report_checks.on_two_ranks(ROWS)
    assert {title: cell.error for title, cell in cells.items() if cell.status != "ok"} == {}


def test_every_objective_and_correction_has_a_row():
    themselves = [row.title for row in OWN]
    assert [row.title for row in OBJECTIVES] + themselves == [objective.name for objective in BUILT_IN if objective.data is None]
    assert {row.options["name"] for row in (*TAUGHT_TEXTS, *FOREIGN)} == {"gkd", "gold"}
    assert {row.options["name"] for row in TEXTS} == {"sft", "reward_model", "process_reward_model"}
    assert {row.options["corrections"][0]["name"] for row in CORRECTIONS} == set(REGISTERED_CORRECTIONS)
    assert len({row.title for row in ROWS}) == len(ROWS)
    assert {row.section for row in OPTIONS} != {row.section for row in CORRECTIONS}


def test_another_formula_than_the_papers_fails():
    for row, other in ((GRPO, {"clip_low": 0.21}), (TIS, {"corrections": [{"name": "tis", "max": 1.11}]})):
        wrong = dataclasses.replace(row, cases=tuple(dataclasses.replace(case, options=case.options | other) for case in row.cases))
        assert report_checks.enumerated(wrong).status == "FAIL"
    wrong = dataclasses.replace(GRPO, cases=(dataclasses.replace(GRPO.cases[0], options={"name": "grpo", "clip_high": 0.3}),))
    assert report_checks.by_hand(wrong).status == "FAIL"


def test_a_correction_that_strikes_nothing_fails():
    blunt = dataclasses.replace(TIS.cases[0], options={"name": "grpo", "corrections": [{"name": "ratio_cap", "max": 1e9}]})
    paper = dataclasses.replace(blunt.paper, surrogate=GRPO.cases[0].paper.surrogate)
    assert report_checks.case_gaps(dataclasses.replace(blunt, paper=paper))[-1] == float("inf")


def test_differences_of_a_weight_that_is_not_held_fail():
    cispo = next(row for row in OBJECTIVES if row.title == "cispo")
    assert report_checks.differenced(dataclasses.replace(cispo, differences=GRPO.differences)).status == "FAIL"


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 5.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([1.0], [1.0, 2.0], float("inf")),
        ([float("nan")], [1.0], float("inf")),
    ],
)
def test_gaps_are_relative_and_infinite_where_nothing_can_be_compared(found, expected, error):
    assert gap(found, expected) == pytest.approx(error)


def test_no_gap_and_nan_are_failures():
    assert verdict([]).status == "FAIL"
    assert verdict([float("nan")]).status == "FAIL"
    assert verdict([1e-11]).status == "FAIL"
    assert verdict([1e-11], bound=1e-10).status == "ok"


def test_the_report_says_every_cell_and_ends_with_1_if_any_fails():
    rows = (GRPO, TIS)
    results = {row.title: dict.fromkeys(report.COLUMNS, Cell(status="ok", error=3e-16)) for row in rows}
    for last, status in ((Cell(status="none", note="not in TRL"), 0), (Cell(status="FAIL", error=0.5, note="differs"), 1)):
        results["tis"]["TRL"] = last
        console = Console(file=io.StringIO(), width=200)
        assert report.report(rows, results, console) == status
        printed, written = console.file.getvalue(), report.markdown(rows, results)
        for text in (printed, written):
            assert text.count("ok 3e-16") == 2 * len(report.COLUMNS) - 1 + 1  # one in the legend
            assert last.note in text
            assert torch.__version__ in text
            assert "TRL 1.16" in text


def test_a_check_that_breaks_down_fails():
    def broken(row):
        raise LookupError("no such batch")

    assert report.guarded(broken, GRPO) == Cell(status="FAIL", note="LookupError: no such batch")
