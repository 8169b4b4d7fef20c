"""What `agentrl env show` prints: an environment's first tasks as the model meets them, and its tools."""

from __future__ import annotations

import contextlib
import inspect
import json
from typing import TYPE_CHECKING, Any

from agentrl import registry
from agentrl.errors import ConfigError
from agentrl.records import Task
from agentrl.rollout.hosted import Blueprint, HostedEpisode
from agentrl.rollout.messages import Failed, Open, Opened, Setup
from agentrl.rollout.rows import load_rows, name_of, plain_row
from agentrl.rollout.user_values import clean, frames_of
from agentrl.rollout.user_values import describe as failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.environment import Split
    from agentrl.llm import Message

MOST_CHARS = 400
"""Longer texts are cut."""


def describe(spec: str, *, num_tasks: int) -> str:
    """Describe an environment; its code runs in this process, through the same doors as in a rollout.

    Args:
        spec: which environment.
        num_tasks: tasks to show of each split.

    Raises `ConfigError` for one that does not load, or whose tasks, prompts or tools are broken.
    """
    factory = registry.load(spec)
    lines = [spec, *_indented(inspect.cleandoc(factory.__doc__ or "(no docstring)"))]
    with _users_code(spec, "making it"), _told_its_arguments(spec, lines[1:]):
        blueprint = Blueprint.load(Setup(imports=[], spec=spec, max_output_chars=MOST_CHARS))
        environment = blueprint.make()
    if environment.system:
        lines += ["", "system message", *_indented(environment.system)]
    tools: dict[str, dict[str, Any]] = {}
    for split in ("train", "eval"):
        lines += ["", *_tasks(spec, split, num_tasks, blueprint, tools)]
    lines += ["", f"tools: {', '.join(tools) or 'none'}"]
    for tool in tools.values():
        lines += _indented(json.dumps(tool, indent=2))
    return clean("\n".join(lines))


@contextlib.contextmanager
def _users_code(spec: str, boundary: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the boundary to the environment's own code
        raise ConfigError(f"{failure(repr(spec), boundary, error)}\n{frames_of(error)}".rstrip()) from error


@contextlib.contextmanager
def _told_its_arguments(spec: str, about: list[str]) -> Iterator[None]:
    """Add the docstring to the refusal of a name alone: whoever asks for `math` wants to know what it takes."""
    try:
        yield
    except ConfigError as error:
        if "?" in spec or ":" in spec:
            raise
        raise ConfigError("\n".join([str(error), "", spec, *about])) from error


def _tasks(spec: str, split: Split, num_tasks: int, blueprint: Blueprint, tools: dict[str, dict[str, Any]]) -> Iterator[str]:
    with _users_code(spec, f"tasks({split!r})"):
        rows = load_rows(spec, split, ())
        shown = [Task.from_row(spec, plain_row(name_of(spec, split), rows, index)) for index in range(min(num_tasks, len(rows)))]
    yield f"{split}: {len(rows):,} tasks"
    for task in shown:
        yield f"  task {task.id}"
        yield from _indented(f"row     {_cut(json.dumps(task.row, ensure_ascii=False))}", 4)
        yield from _indented(_opening(blueprint, task, tools), 4)


def _opening(blueprint: Blueprint, task: Task, tools: dict[str, dict[str, Any]]) -> str:
    """How the episode begins; its tools are noted by name. The environment's system text is shown elsewhere."""
    episode = HostedEpisode(blueprint)
    try:
        opened = episode.answer(Open(call=1, session=1, task=task))
        system = episode.system
    finally:
        episode.close()
    if isinstance(opened, Failed):
        raise ConfigError(f"{opened.reason}\n{opened.traceback}".rstrip())
    assert isinstance(opened, Opened)
    tools.update({tool["function"]["name"]: tool["function"] for tool in opened.tools})
    if opened.plays:
        return "the environment plays its episodes itself: what it says is known when it plays"
    if isinstance(opened.prompt, str):
        return f"prompt  {_cut(opened.prompt)}"
    messages = opened.prompt[1:] if system and opened.prompt[0].get("content") == system else opened.prompt
    return "\n".join(f"{message['role']:7} {_cut(_text(message))}" for message in messages)


def _text(message: Message) -> str:
    content: Any = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}... ({len(text):,} characters)"


def _indented(text: str, by: int = 2) -> list[str]:
    return [f"{' ' * by}{line}".rstrip() for line in text.splitlines()]
