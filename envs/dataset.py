"""Rows of a JSON-lines file with reward functions or a judge: the environment behind `dataset:` in a run file."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from agentrl.environment import Split
from agentrl.errors import ConfigError
from agentrl.registry import Spec, import_module, register
from agentrl.single_turn import JudgeFunction, RewardFunction, SingleTurn

T = TypeVar("T")

EVAL_SHARE = 20
"""Without an `eval_path`, every so-many-th row is held out for evaluation."""


@register("dataset")
def dataset(
    path: str,
    rewards: str | list[str] | None = None,
    eval_path: str | None = None,
    judge: str | None = None,
    weights: str | float | list[float] | None = None,
    unscored: bool = False,
) -> SingleTurn:
    """Train on the rows of a file.

    Args:
        path: JSON lines; each row has a `prompt` (text, or messages) and the columns that the rewards read.
        rewards: comma-separated `file.py:function` or `package.module:function`; may be left out where there is a judge. A function that
            makes the reward gets its arguments as `module:factory?arg=value`; with several of them write a JSON list.
        eval_path: rows to evaluate on; by default every 20th row of `path`, which is then not trained on.
        judge: a function that compares two completions, `file.py:function` or `package.module:function`.
        weights: of the rewards, one each, comma-separated; all 1 by default.
        unscored: neither rewards nor a judge, for an objective that learns from a teacher alone; every score is 0.
    """
    if not rewards and not judge and not unscored:
        raise ConfigError("the dataset environment needs `rewards`, a `judge`, or both: file.py:function or package.module:function")
    rows = read_rows(Path(path))
    train, held_out = (rows, read_rows(Path(eval_path))) if eval_path is not None else (split_rows(rows, "train"), split_rows(rows, "eval"))
    names = rewards.split(",") if isinstance(rewards, str) else rewards or []
    functions: list[RewardFunction] = [find_function("reward", name) for name in names]
    compare: JudgeFunction | None = find_function("judge", judge) if judge else None
    numbers = _numbers(weights, len(functions))
    return SingleTurn(train=train, eval=held_out, rewards=functions, judge=compare, weights=numbers, unscored=unscored)


def _numbers(weights: str | float | list[float] | None, count: int) -> list[float] | None:
    """One finite weight a reward. Raises `ConfigError` for anything else."""
    if weights is None:
        return None
    given = weights.split(",") if isinstance(weights, str) else weights if isinstance(weights, list) else [weights]
    try:
        numbers = [float(weight) for weight in given]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"weights {weights!r} of {count} rewards: give one finite number for each of `rewards`, in their order")
    return numbers


def split_rows(rows: Sequence[T], split: Split) -> list[T]:
    """The rows of a split where none are given to evaluate on: every 20th is held out, or none of fewer than 20."""
    if len(rows) < EVAL_SHARE:
        return list(rows) if split == "train" else []
    return [row for index, row in enumerate(rows) if (index % EVAL_SHARE == 0) == (split == "eval")]


def read_rows(path: Path, *, needs: Sequence[str] = ("prompt",), called: str = "the dataset") -> list[dict[str, Any]]:
    """All rows of a JSON-lines file. Raises `ConfigError` naming file and line.

    Args:
        path: the file.
        needs: columns that every row has.
        called: what a file that cannot be read is called.
    """
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(path, number, line, needs))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {called} {path}: {error}") from error
    return rows


def _row(path: Path, number: int, line: str, needs: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}, line {number}: not JSON ({error}); a row is one JSON object a line") from None
    if not isinstance(row, dict) or not all(name in row for name in needs):
        columns = " and ".join(f"a `{name}`" for name in needs)
        shape = f"an object with {columns}" if needs else "a JSON object"
        raise ConfigError(f"{path}, line {number}: a row is {shape}, got {line.strip()[:80]!r}")
    return row


def _functions(module: ModuleType) -> list[str]:
    return [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__ and key[0] != "_"
    ]


def find_function(kind: str, name: str) -> Callable[..., Any]:
    """The function behind `file.py:function` or `package.module:function`; `kind` is what messages call it.

    Of `module:factory?arg=value&arg=value` it is what the factory returns for these arguments; `module:factory?` takes its defaults.
    Values are YAML scalars, percent-encoded where they hold `&`, `+`, `%` or `#`.
    """
    target, asked, _ = name.strip().partition("?")
    where, _, attribute = target.rpartition(":")
    module = import_module(where) if where else None
    function = getattr(module, attribute, None)
    if not callable(function):
        there = f" (functions in {where}: {', '.join(_functions(module)) or 'none'})" if module else ""
        raise ConfigError(f"{kind} {name!r} is not a function{there}; write file.py:function or package.module:function")
    found: Callable[..., Any] = _made(kind, name.strip(), function) if asked else function
    _check_keywords(kind, name, found)
    return found


def _made(kind: str, name: str, factory: Callable[..., Any]) -> Callable[..., Any]:
    """What a factory makes of the arguments behind the question mark."""
    try:
        arguments = Spec.parse(name).arguments
    except ConfigError as error:  # it speaks of environments
        raise ConfigError(f"{kind} {name!r}: {str(error).partition(': ')[2] or error}") from None
    try:
        signature = inspect.signature(factory)
        signature.bind(**arguments)
    except (TypeError, ValueError) as error:
        takes = ", ".join(map(str, signature.parameters.values())) if isinstance(error, TypeError) else "?"
        raise ConfigError(f"{kind} {name!r} does not accept its arguments {arguments}: {error}; it takes: {takes}") from None
    try:
        made = factory(**arguments)
    except (TypeError, ValueError, ImportError) as error:  # a ConfigError is a ValueError
        raise ConfigError(f"{kind} {name!r}: {error}") from error
    if not callable(made):
        raise ConfigError(
            f"{kind} {name!r} gave {made!r:.80}, which is no function; leave `?` and its arguments out of a plain function's name"
        )
    function: Callable[..., Any] = made
    return function


def _check_keywords(kind: str, name: str, function: Callable[..., Any]) -> None:
    """Refuse what cannot be called as a reward or judge is, such as the name of a factory without its arguments."""
    given = ("prompts", "completions") if kind == "judge" else ("prompts", "completions", "completion_ids")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in types have none
        return
    try:
        signature.bind_partial(**dict.fromkeys(given))
    except TypeError as error:
        raise ConfigError(
            f"{kind} {name!r} cannot be called with the keywords {', '.join(given)}: {error}; it takes {signature}. "
            "Let it take **columns, or, where it makes a function, give its arguments: module:factory?arg=value"
        ) from None
