"""Rows of a file graded, several at once and in their order: what `agentrl grade code` prints.

A row has its tests (see `agentrl.rewards.unit_tests.shapes`) and what they are to grade: `solution`, `completion`, `code`, or HumanEval's
`canonical_solution`, which goes on from `prompt`.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError
from agentrl.rewards.unit_tests.grading import grade_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Future

MOST_AT_ONCE = 8
ANSWERS = ("solution", "completion", "canonical_solution", "code")


def grade_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Grade rows, in order: `verdict`, `reason`, and how many `cases` there are and have `passed`.

    Some rows are read before the one that is given. Raises `ConfigError` for a row without anything to grade.
    """
    waiting: deque[Future[dict[str, Any]]] = deque()
    at_once = min(MOST_AT_ONCE, os.cpu_count() or 1)
    with ThreadPoolExecutor(at_once) as threads:
        for row in rows:
            waiting.append(threads.submit(_graded, row, _answer(row)))
            if len(waiting) > 2 * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _answer(row: Mapping[str, Any]) -> str:
    for name in ANSWERS:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise ConfigError(f"a row of code has a text to grade in {', '.join(ANSWERS)}; its columns: {', '.join(map(str, row)) or 'none'}")


def _graded(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    grade = grade_code(answer, row)
    return {"verdict": grade.verdict, "reason": grade.reason, "cases": len(grade.cases), "passed": grade.num_passed}
