"""An environment whose tools do what tools should not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from agentrl.environment import Environment, FunctionTool


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Opaque:
    def __repr__(self) -> str:
        raise RuntimeError("no text either")


@dataclass
class Place:
    city: str
    zip: str = "000"


def circle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def deep() -> list[Any]:
    nest: list[Any] = []
    for _ in range(5000):
        nest = [nest]
    return nest


ODD = [
    lambda: None,
    Opaque,
    lambda: b"\xff\x00",
    lambda: {1, 2},
    lambda: {(1, 2): 3},
    lambda: math.nan,
    lambda: 10**5000,
    lambda: "\ud800 lone",
    lambda: "x" * 200_000,
    lambda: (item for item in "ab"),
    circle,
    deep,
    lambda: {"k": object()},
    lambda: type,
]


class Awkward(Environment):
    def tasks(self, split):
        return [{"prompt": "go"}]

    def start(self, task):
        return "go"

    def fine(self, x: int, label: str = "a", tags: list[str] | None = None) -> str:
        """Works."""
        return f"{x} {label} {tags}"

    def where(self, place: Place, mode: Literal["near", "far"] = "near", scale: float = 1.0) -> dict[str, Any]:
        """Works, with an object."""
        return {"place": place.city, "mode": mode, "scale": scale}

    def odd(self, which: int) -> Any:
        """Gives something odd."""
        return ODD[which % len(ODD)]()

    def fails(self, kind: int = 0) -> str:
        """Raises."""
        raise [
            KeyError("gone"),
            Unprintable(),
            RecursionError(),
            MemoryError(),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            StopIteration(),
        ][kind % 6]

    async def waits(self, text: str = "") -> str:
        """Works later."""
        return text

    async def waits_and_fails(self) -> str:
        """Raises later."""
        raise Unprintable

    def toolbox(self):
        schema = {
            "type": "object",
            "properties": {"q": {"type": "string", "maxLength": 8}, "n": {"type": ["integer", "null"]}},
            "required": ["q"],
        }
        return [FunctionTool(name="search-web", description="", parameters=schema, call=lambda **given: given)]

    def score(self, episode):
        return 1.0
