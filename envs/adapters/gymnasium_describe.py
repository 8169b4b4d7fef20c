"""What a gymnasium environment looks like in words: actions by name, observations as text, and how it is solved where that is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from agentrl.errors import ConfigError

MOST_BOX_VALUES = 64
"""A larger array is no text."""
DISCOUNT = 0.999
"""Makes the shorter of two equally good ways the better one."""
SWEEPS = 300
"""Of value iteration; the largest of the toy environments is some 40 steps wide."""

_HIGHLIGHTED = re.compile(r"\x1b\[[\d;]*m(.)\x1b\[0m", re.DOTALL)
_ESCAPE = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known about an environment that says little itself."""

    goal: str = ""
    actions: tuple[str, ...] = ()
    observe: Callable[[Any, Any], str] | None = None
    """`observe(unwrapped environment, observation)`."""


def _blackjack(_: Any, observation: Any) -> str:
    total, dealer, ace = (int(value) for value in observation)
    return f"your cards: {total}{' with a usable ace' if ace else ''}; the dealer shows: {dealer}"


def _taxi(environment: Any, observation: Any) -> str:
    row, column, passenger, destination = environment.decode(int(observation))
    where = "in the taxi" if passenger == 4 else f"at {'RGYB'[passenger]}"
    grid = "\n".join(line.tobytes().decode() for line in environment.desc)
    return f"{grid}\ntaxi: row {row}, column {column}; passenger: {where}; destination: {'RGYB'[destination]}"


KNOWN: Mapping[str, Known] = {
    "BlackjackEnv": Known(
        goal="Blackjack: come closer to 21 than the dealer, without going over.", actions=("stick", "hit"), observe=_blackjack
    ),
    "CliffWalkingEnv": Known(
        goal="Walk from x to T by the shortest way; every step costs 1, and the cliff (C) 100.", actions=("up", "right", "down", "left")
    ),
    "FrozenLakeEnv": Known(
        goal="Walk over the frozen lake (F) from S to G without falling into a hole (H). You stand in brackets.",
        actions=("left", "down", "right", "up"),
    ),
    "TaxiEnv": Known(
        goal="Drive the taxi to the passenger, pick up, drive to the destination and drop off. R is at row 0, column 0; G at row 0, "
        "column 4; Y at row 4, column 0; B at row 4, column 3. | is a wall. Every step costs 1, a wrong pickup or dropoff 10.",
        actions=("south", "north", "east", "west", "pickup", "dropoff"),
        observe=_taxi,
    ),
}
"""By the name of the environment's class."""


def known_about(environment: Any) -> Known:
    """The entry of an environment's class; an empty one for others."""
    return KNOWN.get(type(environment.unwrapped).__name__, Known())


def action_names(environment: Any, given: Sequence[str] = ()) -> tuple[str, ...] | None:
    """A name for each action of a `Discrete` space; None where actions are text. Raises `ConfigError` for other spaces."""
    space = environment.action_space
    kind = type(space).__name__
    if kind == "Text":
        return None
    if kind != "Discrete":
        raise ConfigError(f"{_id(environment)} has actions in {space}; a text can only choose from Discrete or be in Text")
    enumerated = getattr(environment.unwrapped, "actions", None)  # minigrid's way
    own = [one.name for one in enumerated] if isinstance(enumerated, type) and issubclass(enumerated, Enum) else []
    count = int(space.n)
    names = tuple(given) or known_about(environment).actions or tuple(own) or tuple(str(int(space.start) + at) for at in range(count))
    if len(names) != count or len({name.casefold() for name in names}) != count:
        raise ConfigError(f"{_id(environment)} has {count} actions; got the names {', '.join(names)}")
    return tuple(str(name) for name in names)


def observed(environment: Any, observation: Any) -> str:
    """An observation as text: by what is known of the class, a map in text, or the value in words."""
    inner = environment.unwrapped
    known = known_about(environment)
    if known.observe is not None:
        return known.observe(inner, observation)
    if hasattr(inner, "pprint_grid"):  # minigrid's way
        mission = observation.get("mission", "") if isinstance(observation, Mapping) else ""
        return f"{mission}\n{inner.pprint_grid()}".strip()
    if environment.render_mode == "ansi":
        return _plain(str(environment.render()))
    return in_words(environment.observation_space, observation)


def _plain(text: str) -> str:
    """Terminal output without its colours; what stood out in it stands in brackets."""
    lines = _ESCAPE.sub("", _HIGHLIGHTED.sub(r"[\1]", text)).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def in_words(space: Any, value: Any) -> str:
    """A value of a space, in words. Raises `ConfigError` for spaces that no text shows."""
    match type(space).__name__:
        case "Text":
            return str(value)
        case "Discrete":
            return str(int(value))
        case "MultiDiscrete" | "MultiBinary":
            return str(np.asarray(value).tolist())
        case "Tuple":
            return ", ".join(in_words(one, part) for one, part in zip(space.spaces, value, strict=True))
        case "Dict":
            return "\n".join(f"{key}: {in_words(one, value[key])}" for key, one in space.spaces.items())
        case "Box" if int(np.prod(space.shape)) <= MOST_BOX_VALUES:
            return str(np.round(np.asarray(value, dtype=float), 4).tolist())
    raise ConfigError(f"an observation in {space} is no text; Discrete, MultiDiscrete, Text, Tuple, Dict and small Box spaces are")


def best_actions(environment: Any, state: int, most: int) -> list[int] | None:
    """The actions that solve a deterministic environment with a transition table `P`, from a state; None for others.

    By value iteration (Bellman 1957) over `P[state][action] = [(probability, next, reward, done)]`, the form of the toy environments.
    """
    table = getattr(environment.unwrapped, "P", None)
    if not isinstance(table, Mapping) or any(len(ways) != 1 for moves in table.values() for ways in moves.values()):
        return None
    values = dict.fromkeys(table, 0.0)
    for _ in range(SWEEPS):
        values = {one: max(_worth(ways[0], values) for ways in moves.values()) for one, moves in table.items()}
    actions: list[int] = []
    while len(actions) < most:
        action = max(table[state], key=lambda one: _worth(table[state][one][0], values))
        _, following, _, done = table[state][action][0]
        actions.append(int(action))
        if done:
            return actions
        state = int(following)
    return None


def _worth(way: Sequence[Any], values: Mapping[int, float]) -> float:
    _, following, reward, done = way
    return float(reward) + (0.0 if done else DISCOUNT * values[int(following)])


def _id(environment: Any) -> str:
    return str(environment.spec.id) if environment.spec is not None else type(environment.unwrapped).__name__
