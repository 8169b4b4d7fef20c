"""Rows of a file graded one after the other: what `agentrl grade math` prints.

A row has `gold` and `answer`, and may have `grader` (one of `agentrl.rewards.graders`), `options` for multiple choice and `policy`, a list
of what is right beyond equality.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError
from agentrl.rewards.grader_pool import GraderPool, Pair
from agentrl.rewards.graders import GRADERS, grader
from agentrl.rewards.math_compare import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agentrl.rewards.grades import Grade

MOST_WORKERS = 8
_POLICIES = tuple(field.name for field in dataclasses.fields(Policy))


def grade_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Grade rows, in order: `verdict`, `reason` and what was taken for the `answer`.

    Rows of the grader `math` are graded several at a time, so some are read before the one that is given. Raises `ConfigError` on reading
    a row that is not of this shape.
    """
    with GraderPool(workers=min(MOST_WORKERS, os.cpu_count() or 1)) as pool:
        for grade in pool.grade_each(map(_asked, rows)):
            yield {"verdict": grade.verdict, "reason": grade.reason, "answer": grade.answer}


def _asked(row: Mapping[str, Any]) -> Pair | Grade:
    for column in ("gold", "answer"):
        if not isinstance(row.get(column), str):
            has = ", ".join(row) or "none"
            raise ConfigError(
                f"a row to grade has the texts `gold` and `answer`; got {row.get(column)!r:.80} for {column} (columns: {has})"
            )
    name = row.get("grader", "math")
    if name not in GRADERS:
        raise ConfigError(f"`grader` may be {', '.join(GRADERS)}, got {name!r:.80}")
    allowed = row.get("policy", [])
    if not isinstance(allowed, list) or not set(map(str, allowed)) <= set(_POLICIES):
        raise ConfigError(f"`policy` is a list of {', '.join(_POLICIES)}, got {allowed!r:.80}")
    policy = Policy(**dict.fromkeys(map(str, allowed), True))
    if name == "math":
        return Pair(gold=row["gold"], answer=row["answer"], policy=policy)
    return grader(name, policy).grade(gold=row["gold"], answer=row["answer"], options=row.get("options"))
