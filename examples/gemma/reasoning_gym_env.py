"""A reasoning-gym task as an environment for a base model: a few solved examples, then the question; the package scores the answer.

    agentrl env show "examples/gemma/reasoning_gym_env.py:ReasoningGym?task=chain_sum"

A question is for training or for evaluation by its hash, so that no evaluation question was ever trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from zlib import crc32

import reasoning_gym

from agentrl import Environment, Episode

SEED, SHOTS_SEED = 1, 2
HELD_OUT_SHARE = 3
"""One question in so many, by its hash, is for evaluation only, whatever the seed."""


class ReasoningGym(Environment):
    """One task generator of reasoning-gym, for a model that continues text."""

    max_turns = 1

    def __init__(self, task: str = "chain_sum", size: int = 4000, shots: int = 4, short: bool = False, **options: Any) -> None:
        """Choose a generator.

        Args:
            task: its name in reasoning-gym.
            size: questions to draw, before repeated ones are left out.
            shots: solved examples before the question.
            short: show only what follows the colon in a question, where what is before it is the same in all of them.
            options: the generator's own.
        """
        self._name, self._size, self._shots, self._short, self._options = task, size, shots, short, options

    def tasks(self, split: str) -> list[Mapping[str, Any]]:
        """Rows of `prompt` and reasoning-gym's own entry; each question once."""
        drawn = {entry["question"]: entry for entry in (self._entry(SEED, index) for index in range(self._size))}
        examples = "".join(f"{self._shown(one['question'])} {one['answer']}\n" for one in self._examples())
        return [
            {"prompt": examples + self._shown(question), "entry": entry}
            for question, entry in drawn.items()
            if (crc32(question.encode()) % HELD_OUT_SHARE == 0) == (split == "eval")
        ]

    def score(self, episode: Episode) -> float:
        """reasoning-gym's own score of the first line."""
        answer = episode.answer.strip().partition("\n")[0].strip()
        return float(self._dataset(SEED).score_answer(answer, episode.task.row["entry"]))

    def _shown(self, question: str) -> str:
        return question.rpartition(":")[2].strip() if self._short else f"Q: {question.strip()}\nA:"

    def _examples(self) -> list[dict[str, Any]]:
        return [self._entry(SHOTS_SEED, index) for index in range(self._shots)]

    def _entry(self, seed: int, index: int) -> dict[str, Any]:
        entry = self._dataset(seed)[index]
        return {"question": entry["question"], "answer": entry["answer"], "metadata": _plain(entry["metadata"])}

    def _dataset(self, seed: int) -> Any:
        return _make(self._name, seed, self._size, tuple(sorted(self._options.items())))


@cache
def _make(task: str, seed: int, size: int, options: tuple[tuple[str, Any], ...]) -> Any:
    return reasoning_gym.create_dataset(task, seed=seed, size=size, **dict(options))


def _plain(value: Any) -> Any:
    """Metadata as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
