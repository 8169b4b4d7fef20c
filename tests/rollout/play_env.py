"""Environments that the tests load by path. Imported in worker processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from agentrl.environment import Environment
from agentrl.errors import EnvironmentFailure
from agentrl.single_turn import SingleTurn


class Guess(Environment):
    """Tools, of which most misbehave."""

    def __init__(self, system: str = "", prompt: Any = None) -> None:
        self.system = system  # type: ignore[misc]
        self.prompt = prompt
        self.seen: list[str] = []

    def start(self, task: Any) -> Any:
        self.row = task.row
        return self.prompt or task.row.get("prompt", "hi")

    def look(self, count: int = 1) -> str:
        """Look around.

        Args:
            count: how far.
        """
        self.seen.append("x")
        return "x" * count

    def total(self) -> int:
        return len(self.seen)

    async def wait(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return f"loop {id(asyncio.get_running_loop())}"

    def finish(self) -> None:
        self.done = True

    def boom(self) -> str:
        raise KeyError("no such place")

    def leave(self) -> str:
        raise SystemExit(3)

    def infrastructure(self) -> str:
        raise EnvironmentFailure("the sandbox is down")

    def surrogate(self) -> str:
        return "a\ud800b"

    def talk(self) -> str:
        print("said in a tool", flush=True)
        os.write(1, b"written to 1\n")
        return "talked"

    def die(self) -> str:
        os._exit(7)

    def crash(self) -> str:
        os.kill(os.getpid(), 11)
        return self.hang()

    def hang(self) -> str:
        threading.Event().wait()
        return ""

    def spawn(self, apart: bool) -> int:
        """Start a process that outlives everything but a kill; `apart` leaves the process group."""
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=apart).pid

    def escape(self) -> int:
        """Start an orphan in a session of its own that inherits nothing which could tell where it came from."""
        script = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); os.close(1); time.sleep(600)"
        return int(subprocess.run([sys.executable, "-c", script], env={}, stdout=subprocess.PIPE, check=True).stdout)

    def score(self, episode: Any) -> Any:
        values = {"nan": float("nan"), "inf": float("inf"), "none": None, "word": "much", "parts": {"a": 0.25, "b": 0.5}}
        if episode.answer == "raise":
            raise ZeroDivisionError("by nothing")
        if episode.answer == "hang":
            time.sleep(600)
        if episode.answer == "echo":
            assert episode.completion_ids
            return len(episode.completion_ids)
        return values.get(episode.answer, 1.0)


class Dialog(Environment):
    """Replies until it has heard enough."""

    max_turns = 4

    def start(self, task: Any) -> Any:
        return task.row["prompt"]

    def reply(self, answer: str) -> str | None:
        self.done = answer == "enough"
        return None if answer == "bye" else f"you said {len(answer)}"

    def score(self, episode: Any) -> float:
        return float(len(episode.messages))


class Odd(Dialog):
    """Lies about its types."""

    def start(self, task: Any) -> Any:
        return {"number": 3, "empty": [], "bare": ["hi"], "set": [{"role": "user", "content": [object()]}]}.get(task.row["kind"], "hi")

    def reply(self, answer: str) -> Any:
        return 7


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def single(rows: int = 4) -> SingleTurn:
    return SingleTurn(train=[{"prompt": f"say {number}"} for number in range(rows)], rewards=[length])


def hanging() -> SingleTurn:
    threading.Event().wait()
    raise AssertionError


def dying() -> SingleTurn:
    print("about to die", file=sys.stderr, flush=True)
    os._exit(9)


class Strange(Environment):
    def pick(self, *values: int) -> str:
        return ""


class Paid(Environment):
    """Rewards single turns, with numbers or with something else."""

    def start(self, task: Any) -> Any:
        self.row = task.row
        self.turn_reward = 50.0  # of no turn
        return task.row["prompt"]

    def earn(self, amount: float) -> None:
        self.turn_reward += amount

    async def earn_later(self, amount: float) -> None:
        await asyncio.sleep(0)
        self.turn_reward = amount

    def earn_and_fail(self, amount: float) -> None:
        self.turn_reward = amount
        raise ValueError("but paid")

    def earn_oddly(self, kind: str) -> None:
        odd = {"nan": float("nan"), "inf": float("inf"), "text": "1", "none": None, "list": [1.0, 2.0]}
        self.turn_reward = odd[kind]  # type: ignore[assignment]

    def reply(self, answer: str) -> str | None:
        self.turn_reward = float("nan") if answer == "nan" else len(answer)
        return None if answer == "bye" else "go on"

    def score(self, episode: Any) -> Any:
        self.turn_reward = 1000.0  # too late: this is the end
        return self.row.get("score", 2.0)


class Judged(Environment):
    """Prefers the longer answer, unless the first one says what to do instead."""

    def start(self, task: Any) -> Any:
        self.word, self.scored = task.row["prompt"], False
        return self.word

    def score(self, episode: Any) -> float | None:
        self.scored = True
        return None if episode.answer == "unscorable" else 0.0

    def compare(self, first: Any, second: Any) -> Any:
        assert not self.scored
        assert first.prompt == second.prompt == self.word
        assert all(episode.completion_ids and episode.ending == "complete" for episode in (first, second))
        assert "unscorable" not in (first.answer, second.answer)
        odd = {"nan": float("nan"), "two": 2.0, "minus": -0.1, "text": "0.5", "list": [0.5], "none": None, "true": True}
        if first.answer == "raise":
            raise ZeroDivisionError("by nothing")
        if first.answer == "hang":
            threading.Event().wait()
        if first.answer in odd:
            return odd[first.answer]
        longer = len(first.answer) - len(second.answer)
        return 0.5 if not longer else float(longer > 0)


class JudgedLater(Judged):
    async def compare(self, first: Any, second: Any) -> Any:
        await asyncio.sleep(0)
        return super().compare(first, second)


async def shorter(prompts: list[Any], completions: list[list[Any]]) -> list[int]:
    """A judge in TRL's signature."""
    await asyncio.sleep(0)
    assert len(prompts) == len(completions) == 1
    first, second = (len(messages[-1]["content"]) for messages in completions[0])
    return [-1 if first == second else int(first > second)]


def judged_single() -> SingleTurn:
    return SingleTurn(train=[{"prompt": "say"}], judge=shorter)


@dataclass(frozen=True)
class Frozen(Environment):
    def look(self) -> str:
        return "seen"
