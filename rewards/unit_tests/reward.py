"""Reward functions with TRL's signature: the completion's code, graded by the unit tests in the columns."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from agentrl.rewards.extract import completion_text
from agentrl.rewards.unit_tests.grading import grade_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.rewards.unit_tests.grade import CodeGrade

MOST_AT_ONCE = 8


def code_reward(*, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where every unit test passes, else 0; None where that cannot be told. The columns are those of `unit_tests.shapes`."""
    return [grade.score("all").value for grade in _grades(prompts, completions, columns)]


def code_share_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
) -> list[float | None]:
    """The share of the unit tests that pass; None where that cannot be told."""
    return [grade.score("fraction").value for grade in _grades(prompts, completions, columns)]


def _grades(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[CodeGrade]:
    rows = [_row(place, prompts, columns) for place in range(len(completions))]
    texts = [completion_text(completion) for completion in completions]
    with ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1)) as threads:
        return list(threads.map(grade_code, texts, rows))


def _row(place: int, prompts: Sequence[Any], columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of one completion; what is no column of the batch's length is none."""
    row = {name: values[place] for name, values in columns.items() if isinstance(values, list | tuple) and len(values) == len(prompts)}
    return {"prompt": prompts[place], **row}
