"""A long text game: find a key, open a locked room, and carry the treasure home, through rooms that are seen one at a time."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.procedural import Procedural
from agentrl.errors import ConfigError
from agentrl.llm import Message
from agentrl.records import Task
from agentrl.registry import register
from agentrl.rewards.extract import spoken_text

SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 400}
STEPS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
NAMES = (
    *("hall", "kitchen", "cellar", "attic", "study", "library", "garden", "stable"),
    *("chapel", "tower", "larder", "gallery", "armoury", "bakery", "laundry", "nursery"),
)
RULES = (
    "Find the treasure and bring it back to where you start. Commands, one a turn: go north, go east, go south, go west, take key, "
    "take treasure, unlock. A locked room opens from beside it, with the key."
)
PROGRESS = 0.25
"""What taking the key, and taking the treasure, is worth where rewards are shaped."""

Place = tuple[int, int]


def draw(stream: random.Random, *, rooms: int) -> tuple[str, Mapping[str, Any]]:
    """One house: rooms in a tree on a grid, the treasure in a dead end that is locked, the key in another room."""
    while True:
        places, links = _tree(stream, rooms)
        ends = [place for place in places[1:] if sum(place in link for link in links) == 1]
        if len(ends) < 2:
            continue
        vault = stream.choice(ends)
        key = stream.choice([place for place in places[1:] if place != vault])
        row = {
            "rooms": {_name_of(place): NAMES[at % len(NAMES)] for at, place in enumerate(stream.sample(places, len(places)))},
            "doors": sorted([_name_of(a), _name_of(b)] for a, b in links),
            "home": _name_of(places[0]),
            "vault": _name_of(vault),
            "key": _name_of(key),
        }
        return f"{row['doors']} {row['vault']} {row['key']}", row


def _tree(stream: random.Random, rooms: int) -> tuple[list[Place], list[tuple[Place, Place]]]:
    places: list[Place] = [(0, 0)]
    links: list[tuple[Place, Place]] = []
    while len(places) < rooms:
        x, y = stream.choice(places[-3:])  # long branches rather than a bush
        dx, dy = stream.choice(list(STEPS.values()))
        fresh = (x + dx, y + dy)
        if fresh not in places:
            places.append(fresh)
            links.append(((x, y), fresh))
    return places, links


def _name_of(place: Place) -> str:
    return f"{place[0]},{place[1]}"


def _place_of(name: str) -> Place:
    x, y = name.split(",")
    return int(x), int(y)


class House:
    """The state of one game."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.here = self._home = _place_of(row["home"])
        self._names = {_place_of(place): name for place, name in row["rooms"].items()}
        self._doors = {frozenset((_place_of(a), _place_of(b))) for a, b in row["doors"]}
        self._vault, self._key = _place_of(row["vault"]), _place_of(row["key"])
        self.has_key = self.unlocked = self.has_treasure = False

    @property
    def won(self) -> bool:
        """Whether the treasure is home."""
        return self.has_treasure and self.here == self._home

    def exits(self) -> dict[str, Place]:
        """The rooms beside this one, by direction."""
        beside = {name: (self.here[0] + dx, self.here[1] + dy) for name, (dx, dy) in STEPS.items()}
        return {name: place for name, place in beside.items() if frozenset((self.here, place)) in self._doors}

    def describe(self) -> str:
        """What is seen from here."""
        shown = [f"{way} ({self._names[place]}{', locked' if self._closed(place) else ''})" for way, place in self.exits().items()]
        lines = [
            f"You are in the {self._names[self.here]}{' where you started' if self.here == self._home else ''}. Exits: {', '.join(shown)}."
        ]
        if self.here == self._key and not self.has_key:
            lines.append("There is a key here.")
        if self.here == self._vault and not self.has_treasure:
            lines.append("There is a treasure here.")
        return " ".join(lines)

    def act(self, command: str) -> str:
        """Do what a command says; what happened, in words."""
        word, _, rest = command.partition(" ")
        ways = self.exits()
        if word == "go" and rest in ways:
            if self._closed(ways[rest]):
                return "The door is locked."
            self.here = ways[rest]
            return self.describe()
        if command == "take key" and self.here == self._key and not self.has_key:
            self.has_key = True
            return "You have the key."
        if command == "take treasure" and self.here == self._vault and not self.has_treasure:
            self.has_treasure = True
            return "You have the treasure."
        if command == "unlock" and self.has_key and self._vault in ways.values() and not self.unlocked:
            self.unlocked = True
            return "The door is open."
        return f"You cannot {command or 'do nothing'} here. {self.describe()}"

    def solution(self) -> list[str]:
        """Commands that win from here, by the shortest ways."""
        beside = next(place for link in self._doors if self._vault in link for place in link if place != self._vault)
        return [
            *self._way(self.here, self._key),
            "take key",
            *self._way(self._key, beside),
            "unlock",
            *self._way(beside, self._vault),
            "take treasure",
            *self._way(self._vault, self._home),
        ]

    def _closed(self, place: Place) -> bool:
        return place == self._vault and not self.unlocked

    def _way(self, start: Place, end: Place) -> list[str]:
        came: dict[Place, tuple[Place, str]] = {}
        queue = deque([start])
        while end not in came and queue and start != end:
            at = queue.popleft()
            for way, (dx, dy) in STEPS.items():
                place = (at[0] + dx, at[1] + dy)
                if frozenset((at, place)) in self._doors and place not in came and place != start:
                    came[place] = (at, way)
                    queue.append(place)
        ways: list[str] = []
        while end != start:
            end, way = came[end]
            ways.append(f"go {way}")
        return ways[::-1]


@register("treasure")
class Treasure(Environment):
    """Play a text game of some dozens of turns; 1 for the treasure at home, else 0.

    Args of the spec: `rooms`, and `shaped` to reward the key and the treasure too. Give `sampling.max_turns` some 10 turns a room.
    """

    max_turns = 200

    def __init__(self, rooms: int = 9, shaped: bool = False) -> None:
        if not 4 <= rooms <= 40:
            raise ConfigError(f"treasure: rooms must lie in 4 to 40, got {rooms}")
        self._rooms, self._shaped = rooms, shaped
        self._house: House | None = None

    def tasks(self, split: Split) -> Procedural:
        """Houses; the plan of an evaluation house is never trained on."""
        return Procedural(partial(draw, rooms=self._rooms), split=split, size=SIZES[split], name=f"treasure/{self._rooms}")

    def start(self, task: Task) -> list[Message]:
        """The rules, and what is seen at the start."""
        self._house = House(task.row)
        return [{"role": "user", "content": f"{RULES}\n{self._house.describe()}"}]

    def reply(self, answer: str) -> str:
        """What a command, the last line of the answer, does."""
        house = self._house
        assert house is not None
        before = house.has_key + house.has_treasure
        lines = [line.strip() for line in (spoken_text(answer) or "").splitlines() if line.strip()]
        command = re.sub(r"\s+", " ", re.sub(r"[^a-z ]", "", lines[-1].lower())).strip()[:40] if lines else ""
        said = house.act(command)
        if self._shaped:
            self.turn_reward = PROGRESS * (house.has_key + house.has_treasure - before)
        self.done = house.won
        return "You bring the treasure home. You have won." if house.won else said

    def score(self, episode: Episode) -> Mapping[str, float]:
        """1 for a win."""
        assert self._house is not None
        return {"won": float(self._house.won)}

    def golden(self, task: Task) -> Sequence[str]:
        """The shortest game."""
        return House(task.row).solution()
