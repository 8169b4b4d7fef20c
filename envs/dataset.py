"""Rows of a JSON-lines file with reward functions or a judge: the environment behind `dataset:` in a run file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrl.environment import JudgeFunction, RewardFunction, SingleTurn
from agentrl.errors import ConfigError
from agentrl.registry import import_module, register

EVAL_SHARE = 20
"""Without an `eval_path`, every so-many-th row is held out for evaluation."""


@register("dataset")
def dataset(path: str, rewards: str | None = None, eval_path: str | None = None, judge: str | None = None) -> SingleTurn:
    """Train on the rows of a file.

    Args:
        path: JSON lines; each row has a `prompt` (text, or messages) and the columns that the rewards read.
        rewards: comma-separated `file.py:function` or `package.module:function`; may be left out where there is a judge.
        eval_path: rows to evaluate on; by default every 20th row of `path`, which is then not trained on.
        judge: a function that compares two completions, `file.py:function` or `package.module:function`.
    """
    if not rewards and not judge:
        raise ConfigError("the dataset environment needs `rewards`, a `judge`, or both: file.py:function or package.module:function")
    rows = read_rows(Path(path))
    held_out: list[dict[str, Any]] = []
    if eval_path is not None:
        held_out = read_rows(Path(eval_path))
    elif len(rows) >= EVAL_SHARE:
        held_out = [row for index, row in enumerate(rows) if index % EVAL_SHARE == 0]
        rows = [row for index, row in enumerate(rows) if index % EVAL_SHARE]
    functions: list[RewardFunction] = [find_function("reward", name) for name in rewards.split(",")] if rewards else []
    compare: JudgeFunction | None = find_function("judge", judge) if judge else None
    return SingleTurn(train=rows, eval=held_out, rewards=functions, judge=compare)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file. Raises `ConfigError` naming file and line."""
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(path, number, line))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the dataset {path}: {error}") from error
    return rows


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict) or "prompt" not in row:
        raise ConfigError(f"{path}, line {number}: a row is an object with a `prompt`, got {line.strip()[:80]!r}")
    return row


def find_function(kind: str, name: str) -> Callable[..., Any]:
    """The function behind `file.py:function` or `package.module:function`; `kind` is what messages call it."""
    where, _, attribute = name.strip().rpartition(":")
    function = getattr(import_module(where), attribute, None) if where else None
    if not callable(function):
        raise ConfigError(f"{kind} {name!r} is not a function; write file.py:function or package.module:function")
    found: Callable[..., Any] = function
    return found
