"""What `agentrl env show` prints: an environment's first tasks as the model meets them, and its tools."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from agentrl import registry
from agentrl.records import Task
from agentrl.rollout.rows import load_rows, plain_row
from agentrl.rollout.tools import describe_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.environment import Environment, Message, Split

MOST_CHARS = 400
"""Longer texts are cut."""


def describe(spec: str, *, num_tasks: int) -> str:
    """Describe an environment; its code runs in this process.

    Args:
        spec: which environment.
        num_tasks: tasks to show of each split.

    Raises `ConfigError` for one that does not load, or whose tasks or tools are broken.
    """
    build = registry.load(spec)
    lines = [spec, *_indented(inspect.cleandoc(build.__doc__ or "(no docstring)"))]
    environment = build()
    if environment.system:
        lines += ["", "system message", *_indented(environment.system)]
    for split in ("train", "eval"):
        lines += ["", *_tasks(spec, split, num_tasks)]
    tools = describe_tools(environment)
    lines += ["", f"tools: {', '.join(tools) or 'none'}"]
    for tool in tools.values():
        lines += _indented(json.dumps(tool.schema["function"], indent=2))
    return "\n".join(lines)


def _tasks(spec: str, split: Split, num_tasks: int) -> Iterator[str]:
    rows = load_rows(spec, split, ())
    yield f"{split}: {len(rows):,} tasks"
    for index in range(min(num_tasks, len(rows))):
        task = Task.from_row(spec, plain_row(f"environment {spec!r}, tasks({split!r})", rows, index))
        yield f"  task {task.id}"
        yield from _indented(f"row     {_cut(json.dumps(task.row, ensure_ascii=False))}", 4)
        environment = registry.load(spec)()
        try:
            yield from _indented(_prompt(environment, task), 4)
        finally:
            environment.close()


def _prompt(environment: Environment, task: Task) -> str:
    prompt = environment.start(task)
    if isinstance(prompt, str):
        return f"prompt  {_cut(prompt)}"
    return "\n".join(f"{message['role']:7} {_cut(_text(message))}" for message in prompt)


def _text(message: Message) -> str:
    content: Any = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}... ({len(text):,} characters)"


def _indented(text: str, by: int = 2) -> list[str]:
    return [f"{' ' * by}{line}".rstrip() for line in text.splitlines()]
