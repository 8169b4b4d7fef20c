"""The environment of the speed comparisons, as agentrl plays it; see `bench_model.py` for the work."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from bench_model import GROUPS_PER_STEP, draw_wait_s, prompts, reward_of

from agentrl import Environment, Episode, Task

MOST_STEPS = 64
_draw = random.Random(1)


class Bench(Environment):
    """Prompts whose completions have fixed or ragged lengths; in ragged mode each episode waits before it is scored."""

    max_turns = 1

    def __init__(self, mode: str = "fixed", wait: bool = True) -> None:
        self._mode, self._wait = mode, wait and mode == "ragged"

    def tasks(self, split: str) -> list[dict[str, Any]]:
        """As many as a run needs."""
        return [{"prompt": prompt.text, "max_tokens": prompt.max_tokens} for prompt in prompts(self._mode, GROUPS_PER_STEP * MOST_STEPS)]

    def start(self, task: Task) -> str:
        """The prompt; completions end at the task's own length."""
        self.max_tokens = task.row["max_tokens"]
        return str(task.row["prompt"])

    async def score(self, episode: Episode) -> float:
        """The shared reward, after the shared wait."""
        if self._wait:
            await asyncio.sleep(draw_wait_s(_draw))
        return reward_of(episode.completion_ids[0])
