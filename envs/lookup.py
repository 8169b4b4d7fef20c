"""A storehouse that only its tools can see: look items up, add them, and answer. Several turns, typed tools."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.golden_calls import golden_call
from agentrl.envs.procedural import Procedural
from agentrl.errors import ConfigError
from agentrl.llm import Message
from agentrl.records import Score, Task
from agentrl.registry import register
from agentrl.rewards.grader_pool import Pair, shared_pool

ITEMS = ("apple", "book", "chair", "drum", "egg", "fork", "glove", "hat", "iron", "jar", "kite", "lamp", "mug", "nail", "oar", "pen")
SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 1_000}


def draw(stream: random.Random, *, items: int) -> tuple[str, Mapping[str, Any]]:
    """One task: a stock of four items and a question about `items` of them."""
    names = stream.sample(ITEMS, 4)
    stock = {name: stream.randint(10, 99) for name in names}
    asked = names[:items]
    total = sum(stock[name] for name in asked)
    key = " ".join(f"{name}={stock[name]}" for name in sorted(asked))
    return key, {
        "prompt": f"How many of {' and '.join(asked)}?",
        "stock": dict(sorted(stock.items())),
        "asked": asked,
        "answer": str(total),
    }


@register("lookup")
class Lookup(Environment):
    """Find out how many there are of one or two items (`items`), with tools that must be called."""

    max_turns = 6

    def __init__(self, items: int = 2) -> None:
        if items not in (1, 2):
            raise ConfigError(f"lookup: items must be 1 or 2, got {items}")
        self._items = items
        self._stock: dict[str, int] = {}

    def tasks(self, split: Split) -> Procedural:
        """Questions about a stock that differs from task to task."""
        return Procedural(partial(draw, items=self._items), split=split, size=SIZES[split], name=f"lookup/{self._items}")

    def start(self, task: Task) -> list[Message]:
        """Only the question is shown; the stock stays behind the tools."""
        self._stock = task.row["stock"]
        return [{"role": "user", "content": task.row["prompt"]}]

    def lookup(self, item: str) -> int | str:
        """Count an item in stock.

        Args:
            item: Name of the item.
        """
        return self._stock.get(item, f"no {item}")

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: First number.
            b: Second number.
        """
        return a + b

    def score(self, episode: Episode) -> Score:
        """1 for the right count, else 0."""
        return shared_pool().grade(Pair(gold=episode.task.row["answer"], answer=episode.answer)).score()

    def golden(self, task: Task) -> Sequence[str]:
        """Every item looked up, added where there are two, and the sum said."""
        stock, asked = task.row["stock"], task.row["asked"]
        calls = [golden_call("lookup", item=item) for item in asked]
        if len(asked) > 1:
            calls.append(golden_call("add", a=stock[asked[0]], b=stock[asked[1]]))
        return [*calls, f"\\boxed{{{task.row['answer']}}}"]
