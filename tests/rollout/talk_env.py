"""An environment that plays its episodes itself, as a test says: `PLAY` is set before, in the same process."""

from __future__ import annotations

import time
from typing import Any

from agentrl.environment import Environment

PLAY: Any = None


class Talk(Environment):
    """Plays what the test wants."""

    closed = 0

    async def episode(self, task: Any, llm: Any) -> Any:
        return await PLAY(task, llm)

    def close(self) -> None:
        type(self).closed += 1


class Scored(Talk):
    """Leaves the score to `score`."""

    part_weights = {"length": 0.5}  # noqa: RUF012

    def score(self, episode: Any) -> Any:
        return {"length": float(len(episode.completion_ids)), "said": float(episode.answer == "bye")}


class Walk(Environment):
    """Many short turns, with a tool that another episode may block for long."""

    def start(self, task: Any) -> Any:
        self.steps = 0
        return [{"role": "user", "content": f"walk {task.row['prompt']}"}]

    def step(self, far: int = 1) -> str:
        self.steps += far
        return f"at {self.steps}"

    def burn(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1000))
        return "burnt"

    def score(self, episode: Any) -> float:
        return float(self.steps)


class Prompted(Talk):
    """Tells what `score` sees."""

    def score(self, episode: Any) -> Any:
        shown = episode.completion if isinstance(episode.completion, str) else [message["content"] for message in episode.completion]
        return {"seen": float(shown == SEEN)}


class Late(Talk):
    """Calls the model once its episode is over."""

    async def score(self, episode: Any) -> Any:
        return await SCORE()


SEEN: Any = None
SCORE: Any = None


class Short(Talk):
    """Has budgets of its own."""

    max_turns = 2
    max_tokens = 3


class Counted(Talk):
    """Counts how many were made, and closed."""

    made = 0
    closed = 0

    def __init__(self) -> None:
        type(self).made += 1
