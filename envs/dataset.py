"""Rows of a JSON-lines file with reward functions: the environment behind `dataset:` and `rewards:` in a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from agentrl.environment import RewardFunction, SingleTurn
from agentrl.errors import ConfigError
from agentrl.registry import import_module, register

EVAL_SHARE = 20
"""Without an `eval_path`, every so-many-th row is held out for evaluation."""


@register("dataset")
def dataset(path: str, rewards: str, eval_path: str | None = None) -> SingleTurn:
    """Train on the rows of a file.

    Args:
        path: JSON lines; each row has a `prompt` (text, or messages) and the columns that the rewards read.
        rewards: comma-separated `file.py:function` or `package.module:function`.
        eval_path: rows to evaluate on; by default every 20th row of `path`, which is then not trained on.
    """
    rows = read_rows(Path(path))
    functions = [find_function(name) for name in rewards.split(",")]
    if eval_path is not None:
        return SingleTurn(train=rows, eval=read_rows(Path(eval_path)), rewards=functions)
    if len(rows) < EVAL_SHARE:
        return SingleTurn(train=rows, rewards=functions)
    held_out = [row for index, row in enumerate(rows) if index % EVAL_SHARE == 0]
    return SingleTurn(train=[row for index, row in enumerate(rows) if index % EVAL_SHARE], eval=held_out, rewards=functions)


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


def find_function(name: str) -> RewardFunction:
    """The reward function behind `file.py:function` or `package.module:function`."""
    where, _, attribute = name.strip().rpartition(":")
    function = getattr(import_module(where), attribute, None) if where else None
    if not callable(function):
        raise ConfigError(f"reward {name!r} is not a function; write file.py:function or package.module:function")
    return cast("RewardFunction", function)
