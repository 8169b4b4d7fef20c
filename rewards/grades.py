"""What a grader says: correct, wrong, or unscorable, with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentrl.records import Score

Verdict = Literal["correct", "wrong", "unscorable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A verdict and what led to it."""

    verdict: Verdict
    reason: str = ""
    """Empty for a plain comparison."""
    answer: str | None = None
    """What was taken for the answer; None where there was none."""

    def score(self) -> Score:
        """1, 0 or unscorable."""
        if self.verdict == "unscorable":
            return Score.unscorable(self.reason)
        value = float(self.verdict == "correct")
        return Score(value=value, parts={"correct": value})

    @staticmethod
    def of(right: bool, answer: str | None) -> Grade:
        """Correct or wrong, by a comparison that needs no reason."""
        return Grade(verdict="correct" if right else "wrong", answer=answer)
