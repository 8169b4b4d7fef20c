"""Environments of every kind, to be mixed."""

from __future__ import annotations

from typing import Any

from agentrl.environment import Environment
from agentrl.single_turn import SingleTurn


class Tools(Environment):
    """A tool that ends the episode and pays for it."""

    max_turns = 3
    system = "You are a miner."

    def tasks(self, split: Any) -> Any:
        return [{"prompt": f"dig {split}"}]

    def start(self, task: Any) -> Any:
        return [{"role": "user", "content": task.row["prompt"]}]

    def dig(self, deep: int = 1) -> str:
        """Dig."""
        self.turn_reward = 0.5 * deep
        self.done = True
        return "gold"

    def score(self, episode: Any) -> Any:
        return {"dug": 1.0}


class Asks(Environment):
    """Says more once."""

    def tasks(self, split: Any) -> Any:
        return [{"prompt": f"{split} {number}"} for number in range(3)]

    def start(self, task: Any) -> Any:
        self.asked = False
        return task.row["prompt"]

    def reply(self, answer: str) -> str | None:
        if self.asked:
            return None
        self.asked = True
        return " more?"

    async def score(self, episode: Any) -> float:
        return float(len(episode.messages))


class Plays(Environment):
    """Plays itself."""

    def tasks(self, split: Any) -> Any:
        return [{"goal": 2}]

    async def episode(self, task: Any, llm: Any) -> float:
        reply = await llm.chat([{"role": "user", "content": "say it"}])
        return task.row["goal"] * float(reply.text == "it")


def loud(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """A reward."""
    return [float(completion.isupper()) for completion in completions]


def single() -> SingleTurn:
    return SingleTurn(train=[{"prompt": "shout"}], rewards=[loud])
