"""Input and output tests: the code runs as a script, once for each case, and what it prints is compared out here."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.rewards.unit_tests import pools
from agentrl.rewards.unit_tests.grade import CaseGrade, CodeGrade, of_cases, unscorable
from agentrl.servers.sandbox.warm_watch import run_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.servers.sandbox.limits import Limits, Outcome

_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOutput:
    """One case: what the program reads, and what it must print."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How what was printed is compared.

    By default line by line, white space at the end of lines and of the text aside. With `tokens`, word by word, whatever is between them.
    """

    tokens: bool = False
    tolerance: float = 0.0
    """With `tokens`: numbers that differ by no more than this count as equal, absolutely or as a share of the expected one. Two whole
    numbers must be the same."""

    def same(self, expected: str, printed: str) -> bool:
        """Whether it is what was expected."""
        if not self.tokens:
            return _lines(expected) == _lines(printed)
        words, said = expected.split(), printed.split()
        return len(words) == len(said) and all(self._same_word(*pair) for pair in zip(words, said, strict=True))

    def _same_word(self, expected: str, printed: str) -> bool:
        if expected == printed:
            return True
        if not self.tolerance or (_WHOLE.fullmatch(expected) and _WHOLE.fullmatch(printed)):
            return False
        first, second = _number(expected), _number(printed)
        if first is None or second is None:
            return False
        return abs(first - second) <= self.tolerance * max(1.0, abs(first))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _number(text: str) -> float | None:
    value = float(text) if len(text) < 400 and _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


EXACT = Comparison()


def grade_script(
    code: str, cases: Sequence[InputOutput], *, comparison: Comparison = EXACT, limits: Limits = pools.LIMITS, all_cases: bool = True
) -> CodeGrade:
    """Grade a program by what it prints. Raises `SandboxUnavailable`.

    Args:
        code: of the program.
        cases: at least one.
        comparison: of what is printed with what is expected.
        limits: of each case.
        all_cases: whether later ones are run, too, once one has failed.
    """
    if not cases:
        return unscorable("there are no test cases")
    grades: list[CaseGrade] = []
    job = json.dumps({"code": code}).encode()
    for number, case in enumerate(cases):
        if grades and not grades[-1].passed and not all_cases:
            break
        stdin = case.input if case.input.endswith("\n") or not case.input else case.input + "\n"
        outcome = run_program(pools.pool(), pools.SCRIPT, job, stdin=stdin.encode(errors="surrogatepass"), limits=limits)
        fault = _fault(outcome, case, comparison)
        grades.append(CaseGrade(passed=not fault, reason=f"case {number}: {fault}" if fault else ""))
    skipped = CaseGrade(passed=False, reason="not run: one before it failed")
    return of_cases((*grades, *[skipped] * (len(cases) - len(grades))))


def _fault(outcome: Outcome, case: InputOutput, comparison: Comparison) -> str:
    if not outcome.ok:
        last = outcome.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return outcome.reason or f"ended with status {outcome.code}" + (f": {last[0][:200]}" if last else "")
    printed = outcome.stdout.decode(errors="replace")
    if comparison.same(case.output, printed):
        return ""
    return f"printed {printed[:100]!r} instead of {case.output[:100]!r}"
