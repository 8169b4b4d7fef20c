"""What a grader of code says: a verdict, why, and the verdict of each case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentrl.records import Score

Verdict = Literal["pass", "fail", "unscorable"]
Counting = Literal["all", "fraction"]
"""How cases become a number: 1 where all of them pass, else 0; or the share that passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseGrade:
    """One case of the tests."""

    passed: bool
    reason: str = ""
    """Empty where it passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeGrade:
    """A verdict on a candidate."""

    verdict: Verdict
    reason: str = ""
    """Of the first case that failed, or why it cannot be scored; empty where it passed."""
    cases: tuple[CaseGrade, ...] = ()

    @property
    def num_passed(self) -> int:
        """Cases that passed."""
        return sum(case.passed for case in self.cases)

    def score(self, counting: Counting = "all") -> Score:
        """A number, or unscorable."""
        if self.verdict == "unscorable":
            return Score.unscorable(self.reason)
        passed = float(self.verdict == "pass")
        share = self.num_passed / len(self.cases) if self.cases else passed
        return Score(value=passed if counting == "all" else share, parts={"passed": passed, "cases": share})


def unscorable(reason: str) -> CodeGrade:
    """The tests or the grader are at fault, not the candidate."""
    return CodeGrade(verdict="unscorable", reason=reason)


def failed(reason: str, num_cases: int) -> CodeGrade:
    """Every case fails, for one reason."""
    return CodeGrade(verdict="fail", reason=reason, cases=(CaseGrade(passed=False, reason=reason),) * num_cases)


def of_cases(cases: tuple[CaseGrade, ...]) -> CodeGrade:
    """The verdict that cases make together."""
    wrong = next((case for case in cases if not case.passed), None)
    return CodeGrade(verdict="pass" if wrong is None else "fail", reason=wrong.reason if wrong else "", cases=cases)
