"""Tasks to be done in a sandboxed shell; what counts is the state of its folder at the end, looked at from outside."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.dataset import read_rows, split_rows
from agentrl.envs.golden_calls import golden_call
from agentrl.envs.procedural import Procedural
from agentrl.envs.sandbox_tools import SandboxTools
from agentrl.errors import EnvironmentFailure
from agentrl.llm import Message
from agentrl.records import Score, Task
from agentrl.registry import register
from agentrl.servers.sandbox import Limits, Sandbox, SandboxFileError, open_sandbox

SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 400}
LIMITS = Limits(cpu_s=10, wall_s=20, memory_mib=256, processes=32)
MOST_RESULT_BYTES = 1 << 20
WORDS = ("ash", "bay", "cove", "dale", "elm", "fern", "glen", "heath", "isle", "jetty", "knoll", "lake", "moor", "ness", "oak", "peak")

Made = tuple[str, dict[str, str], dict[str, str], str]
"""What to do, the files at the start, the files that there must be at the end, and a command that does it."""


def _renamed(stream: random.Random) -> Made:
    old, new = stream.sample(WORDS, 2)
    text = f"{stream.randint(100, 999)}\n"
    return f"Rename {old}.txt to {new}.txt.", {f"{old}.txt": text}, {f"{new}.txt": text}, f"mv {old}.txt {new}.txt"


def _counted(stream: random.Random) -> Made:
    name = stream.choice(WORDS)
    lines = stream.randint(3, 40)
    text = "".join(f"{stream.choice(WORDS)}\n" for _ in range(lines))
    asked = f"Write the number of lines of {name}.txt into count.txt."
    return asked, {f"{name}.txt": text}, {"count.txt": str(lines)}, f"wc -l < {name}.txt > count.txt"


def _sorted(stream: random.Random) -> Made:
    name = stream.choice(WORDS)
    words = stream.sample(WORDS, stream.randint(4, 12))
    asked = f"Write the lines of {name}.txt, sorted, into sorted.txt."
    text = "".join(f"{word}\n" for word in words)
    return asked, {f"{name}.txt": text}, {"sorted.txt": "\n".join(sorted(words))}, f"sort {name}.txt > sorted.txt"


def _found(stream: random.Random) -> Made:
    wanted = stream.choice(WORDS)
    names = stream.sample(WORDS, 5)
    holds = stream.sample(names, stream.randint(1, 3))
    others = [word for word in WORDS if word != wanted]
    files = {f"notes/{name}.txt": f"{stream.choice(others)} {wanted if name in holds else stream.choice(others)}\n" for name in names}
    asked = f"Write the names of the files in notes that hold the word {wanted} into found.txt, one a line, sorted, without the folder."
    result = "\n".join(sorted(f"{name}.txt" for name in holds))
    return asked, files, {"found.txt": result}, f"(cd notes && grep -lw {wanted} *.txt | sort) > found.txt"


def _summed(stream: random.Random) -> Made:
    name = stream.choice(WORDS)
    rows = [(stream.choice(WORDS), stream.randint(1, 99)) for _ in range(stream.randint(3, 9))]
    asked = f"{name}.csv has a word and a number in each line. Write the sum of the numbers into sum.txt."
    text = "".join(f"{word},{number}\n" for word, number in rows)
    total = sum(number for _, number in rows)
    return asked, {f"{name}.csv": text}, {"sum.txt": str(total)}, f"awk -F, '{{s += $2}} END {{print s}}' {name}.csv > sum.txt"


KINDS: Mapping[str, Callable[[random.Random], Made]] = {
    "rename": _renamed,
    "count": _counted,
    "sort": _sorted,
    "find": _found,
    "sum": _summed,
}


def draw(stream: random.Random, *, kinds: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """One task of one of the kinds."""
    asked, files, expected, command = KINDS[stream.choice(kinds)](stream)
    return f"{asked} {sorted(files.items())}", {"prompt": asked, "files": files, "expected": expected, "command": command}


@register("shell")
class ShellTasks(Environment):
    """Do small tasks with files in a sandboxed shell; 1 where every file that is asked for holds what it should.

    Args:
        path: JSON lines of tasks: `prompt`, `files` (name to text) and `expected` (name to text, compared without space at its ends);
            by default tasks of five kinds, made on demand.
        sandbox: what it runs in: `bubblewrap`, the URL of `agentrl serve-sandbox`, or `unsafe-subprocess`.
    """

    system = "You work in a shell. Say that you are done when you are."
    max_turns = 10

    def __init__(self, path: str | None = None, sandbox: str = "bubblewrap") -> None:
        self._path, self._kind = path, sandbox
        self._sandbox: Sandbox | None = None

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The tasks; without an own file, none is in both splits."""
        if self._path is None:
            return Procedural(partial(draw, kinds=tuple(KINDS)), split=split, size=SIZES[split], name="shell")
        return split_rows(read_rows(Path(self._path), needs=("prompt", "files", "expected")), split)

    def start(self, task: Task) -> list[Message]:
        """Open the sandbox and lay the files out."""
        if not task.row["expected"]:
            raise EnvironmentFailure(f"task {task.id} expects no file, so nothing could be scored")
        self._sandbox = open_sandbox(self._kind, limits=LIMITS)
        for name, text in task.row["files"].items():
            self._sandbox.write(name, text.encode())
        return [{"role": "user", "content": task.row["prompt"]}]

    def toolbox(self) -> Sequence[Callable[..., Any]]:
        """A shell that keeps its state."""
        assert self._sandbox is not None
        return SandboxTools(self._sandbox, timeout_s=LIMITS.wall_s).choose("run_shell")

    def score(self, episode: Episode) -> Score:
        """Compare the files, read from outside of the sandbox."""
        wrong = {name: fault for name, text in episode.task.row["expected"].items() if (fault := self._fault(name, text))}
        value = float(not wrong)
        return Score(value=value, parts={"done": value}, reason="; ".join(wrong.values()))

    def _fault(self, name: str, text: str) -> str:
        assert self._sandbox is not None
        try:
            held = self._sandbox.read(name, most_bytes=MOST_RESULT_BYTES)
        except SandboxFileError as error:
            return str(error)
        return "" if held.decode("utf-8", "replace").strip() == text.strip() else f"{name} holds something else"

    def golden(self, task: Task) -> Sequence[str] | None:
        """The command that does it, then a word."""
        if "command" not in task.row:
            return None
        return [golden_call("run_shell", command=task.row["command"]), "Done."]

    def close(self) -> None:
        """End the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()
