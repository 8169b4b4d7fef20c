"""Questions that are answered by calling functions, with known answers: from a JSON-lines file, or the questions of `bfcl-eval`.

One turn, and no function is ever run: the calls are compared (`agentrl.rewards.function_calls`).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from agentrl.environment import Environment, Split
from agentrl.envs.dataset import read_rows
from agentrl.envs.golden_calls import golden_call
from agentrl.envs.procedural import split_of
from agentrl.errors import ConfigError
from agentrl.llm import LLM, Message
from agentrl.records import Score, Task
from agentrl.registry import register
from agentrl.rewards.function_calls import LEFT_OUT, AnswersUnreadable, KnownCall, grade_calls, known_calls

CATEGORIES: Mapping[str, Sequence[str]] = {
    "simple": ("BFCL_v?_simple_python.json", "BFCL_v?_simple.json"),
    "multiple": ("BFCL_v?_multiple.json",),
    "parallel": ("BFCL_v?_parallel.json",),
    "parallel_multiple": ("BFCL_v?_parallel_multiple.json",),
}
"""Category -> the files that may hold it in `bfcl_eval/data`, its answers in `possible_answer` beside them. The calls are Python's."""
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""Types of those files -> of JSON schema, at any depth. `any` is no constraint; all others are the same."""


@register("function-calling")
class FunctionCalling(Environment):
    """Answer with the right calls; 1 where all of them are right and there are no others, else 0.

    A call that cannot be read, or does not fit its function's schema, makes the answer wrong.

    Args:
        path: JSON lines with `prompt` (text or messages), `tools` (OpenAI function schemas) and `answers` (a list with one entry a call,
            in either form of `agentrl.rewards.function_calls`).
        eval_path: such a file to evaluate on. Without it, a tenth of the rows is held out by a hash of their prompts.
        dataset: `bfcl`, the questions in the installed package `bfcl-eval` (only its data is read; `pip install --no-deps bfcl-eval`).
        category: of `bfcl`: `simple`, `multiple`, `parallel` or `parallel_multiple`. Questions whose known answer does not fit their own
            schema are left out: there are two, in `parallel_multiple`.
        ordered: whether the calls must come in the order of the answers.
        spelling: `exact`, or `loose` to compare text as BFCL's own checker does.
    """

    max_turns = 1

    def __init__(
        self,
        path: str | None = None,
        eval_path: str | None = None,
        dataset: str | None = None,
        category: str = "simple",
        ordered: bool = False,
        spelling: str = "exact",
    ) -> None:
        if (path is None) == (dataset is None):
            raise ConfigError("function-calling: give either path=FILE.jsonl or dataset=bfcl, and not both")
        if dataset not in (None, "bfcl") or category not in CATEGORIES:
            raise ConfigError(
                f"function-calling: dataset is bfcl with a category of {', '.join(CATEGORIES)}; got {dataset!r}, {category!r}"
            )
        if spelling not in ("exact", "loose"):
            raise ConfigError(f"function-calling: spelling may be exact or loose, got {spelling!r}")
        self._path, self._eval_path, self._category = path, eval_path, category
        self._ordered, self._loose = ordered, spelling == "loose"

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split as `prompt`, `tools`, `answers`. Raises `ConfigError` naming a row that cannot be read."""
        if self._eval_path is not None:
            return _from_file(self._eval_path if split == "eval" else str(self._path))
        rows = _from_bfcl(self._category) if self._path is None else _from_file(self._path)
        return [row for row in rows if split_of(json.dumps(row["prompt"])) == split]

    async def episode(self, task: Task, llm: LLM) -> Score:
        """Ask once, and compare what was called."""
        row = task.row
        prompt = row["prompt"]
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        reply = await llm.chat(messages, tools=row["tools"])
        if reply.malformed:
            return Score(value=0.0, parts={"correct": 0.0}, reason=reply.malformed[0])
        calls = [(call.name, call.arguments) for call in reply.calls]
        grade = grade_calls(calls=calls, answers=row["answers"], ordered=self._ordered, spelling="loose" if self._loose else "exact")
        return grade.score()

    def golden(self, task: Task) -> Sequence[str]:
        """The known calls with their first allowed values, as Hermes and Qwen models write them."""
        calls = solution(task.row["tools"], task.row["answers"])
        return ["\n".join(golden_call(name, **arguments) for name, arguments in calls or ()) or "No function fits."]


def solution(tools: Sequence[Mapping[str, Any]], answers: Any) -> list[tuple[str, dict[str, Any]]] | None:
    """Calls that are right and fit their schemas; None where there are no such calls. Raises `AnswersUnreadable`."""
    schemas = {tool["name"]: tool["parameters"] for tool in (entry.get("function", entry) for entry in tools)}
    calls = [(one.name, _arguments(one, schemas.get(one.name))) for one in known_calls(answers)]
    return [(name, arguments) for name, arguments in calls if arguments is not None] if all(args is not None for _, args in calls) else None


def _arguments(known: KnownCall, schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The first allowed value of each argument that its schema takes."""
    if schema is None:
        return None
    chosen: dict[str, Any] = {}
    for key, allowed in known.arguments.items():
        inner = schema.get("properties", {}).get(key, {})
        values = [value if known.exact else _first(value) for value in allowed if known.exact or value != LEFT_OUT]
        fitting = [value for value in values if Draft202012Validator(inner).is_valid(value)]
        if fitting:
            chosen[key] = fitting[0]
        elif LEFT_OUT not in allowed:
            return None
    return chosen if Draft202012Validator(schema).is_valid(chosen) else None


def _first(value: Any) -> Any:
    """An allowed value with the first choice at each place within it."""
    if isinstance(value, list):
        return [_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    choices = {key: inner if isinstance(inner, list) else [inner] for key, inner in value.items()}
    return {
        key: _first(next(one for one in inner if one != LEFT_OUT))
        for key, inner in choices.items()
        if any(one != LEFT_OUT for one in inner)
    }


def _from_file(path: str) -> list[dict[str, Any]]:
    rows = read_rows(Path(path))
    for number, row in enumerate(rows, start=1):
        try:
            for tool in row["tools"]:
                Draft202012Validator.check_schema(tool.get("function", tool)["parameters"])
            fits = solution(row["tools"], row["answers"]) is not None
        except AnswersUnreadable as error:
            raise ConfigError(f"{path}, row {number}: {error}") from None
        except Exception as error:  # whatever a row may hold
            said = f"{type(error).__name__}: {str(error)[:200]}"
            raise ConfigError(
                f"{path}, row {number}: a row has `prompt`, `tools` and `answers`, and its tools JSON schemas; {said}"
            ) from None
        if not fits:
            raise ConfigError(f"{path}, row {number}: the known answers call no function of `tools`, or do not fit its schema")
    return rows


@lru_cache
def _from_bfcl(category: str) -> list[dict[str, Any]]:
    questions, answers = _bfcl_file(category, ""), _bfcl_file(category, "possible_answer")
    known = {row["id"]: row["ground_truth"] for row in answers}
    rows = [
        {
            "id": row["id"],
            "prompt": row["question"][0],
            "tools": [{"type": "function", "function": _function(function)} for function in row["function"]],
            "answers": known[row["id"]],
        }
        for row in questions
    ]
    return [row for row in rows if solution(row["tools"], row["answers"]) is not None]


def _bfcl_file(category: str, folder: str) -> list[dict[str, Any]]:
    spec = importlib.util.find_spec("bfcl_eval")  # which does not import it: it wants many a client of an API
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("function-calling: dataset=bfcl needs the package bfcl-eval; `pip install --no-deps bfcl-eval`")
    data = Path(spec.submodule_search_locations[0]) / "data" / folder
    found = [path for pattern in CATEGORIES[category] for path in sorted(data.glob(pattern))]
    if not found:
        raise ConfigError(f"function-calling: {data} has no {' or '.join(CATEGORIES[category])}; tried with bfcl-eval 2026.3.23")
    return [json.loads(line) for line in found[0].read_text(encoding="utf-8").splitlines() if line.strip()]


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    return {**function, "parameters": _json_schema(function["parameters"])}


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of these files as JSON schema."""
    mapped = {key: value for key, value in schema.items() if key not in ("optional", "type", "properties", "items")}
    if schema.get("type") not in (None, "any"):
        mapped["type"] = JSON_TYPES.get(schema["type"], schema["type"])
    if "properties" in schema:
        mapped["properties"] = {key: _json_schema(inner) for key, inner in schema["properties"].items()}
    if "items" in schema:
        mapped["items"] = _json_schema(schema["items"])
    return mapped
