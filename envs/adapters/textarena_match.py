"""One match of a textarena game: made without its wrappers' habits, seeded, and kept apart from other matches in the same process."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from agentrl.environment import finite
from agentrl.envs.adapters import import_extra
from agentrl.envs.adapters.global_random import Dice
from agentrl.errors import ConfigError, EnvironmentFailure

T = TypeVar("T")

Memory = Literal["chat", "wrapper"]
"""`chat`: a player's conversation, to which each turn adds what is new; `wrapper`: one message a turn, by the game's own wrapper."""

MOST_PLAYERS = 15
WORD_LISTS = {"corpora/words": "words", "taggers/averaged_perceptron_tagger_eng": "averaged_perceptron_tagger_eng"}
"""NLTK's resource -> the name by which it is downloaded."""

_LISTED = re.compile(r"(?:available|valid|legal) (?:moves|actions)\b[^\n\[]*(\[.*)", re.IGNORECASE)
_MOVE = re.compile(r"\[[^\[\]\n]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GameSpec:
    """Which game, and how it is made."""

    name: str
    options: str = "{}"
    """For the game's class, as JSON; beside those that its name stands for."""
    memory: Memory = "chat"
    network: bool = False
    """Whether a game that asks models on the internet may be played."""

    def make(self) -> Any:
        """A new game, not yet reset. Raises `ConfigError` for one that is not there, does not import or refuses its options."""
        entry = self._entry()
        options = {**entry.kwargs, **json.loads(self.options)}
        try:
            module, _, name = entry.entry_point.partition(":")
            game = getattr(importlib.import_module(module), name)(**options)
        except (Exception, SystemExit) as error:  # the boundary to the library
            place = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise ConfigError(f"textarena cannot make {self.name!r} with {options}: {type(error).__name__}: {error}{place}") from error
        core = import_extra("textarena.core", "textarena")
        for wrapper in entry.default_wrappers or ():
            if self.memory == "wrapper" or issubclass(wrapper, core.ActionWrapper):
                game = wrapper(game)
        return game

    def _entry(self) -> Any:
        textarena = import_extra("textarena", "textarena")
        registry: Mapping[str, Any] = import_extra("textarena.envs.registration", "textarena").ENV_REGISTRY
        if self.name not in registry:
            near = get_close_matches(self.name, registry, n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"textarena has no game {self.name!r}{hint} See textarena.pprint_registry_detailed()")
        entry = registry[self.name]
        source = Path(str(textarena.__file__)).parent.joinpath(*entry.entry_point.partition(":")[0].split(".")[1:]).with_suffix(".py")
        self._check_needs(source.read_text(encoding="utf-8") if source.is_file() else "")
        return entry

    def _check_needs(self, source: str) -> None:
        """Refuse what would reach for the internet, before the game's module is imported: some do so at once."""
        if "OpenRouter" in source and not self.network:
            raise ConfigError(f"textarena:{self.name} asks models at openrouter.ai to referee; to allow that, add network=true")
        if "nltk" not in source and "EnglishDictionary" not in source:
            return
        data = import_extra("nltk.data", "textarena")
        for resource, name in WORD_LISTS.items():
            try:
                data.find(resource)
            except LookupError:
                raise ConfigError(
                    f"textarena:{self.name} needs NLTK's {name!r}, which is not here; with a network: python -m nltk.downloader {name}"
                ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class GameFacts:
    """What one look at a game tells."""

    players: int
    lists_moves: bool
    """Whether the first player is told which moves there are."""


@lru_cache(maxsize=64)
def facts_of(spec: GameSpec, players: int | None = None) -> GameFacts:
    """Make and start the game, once a process. Raises `ConfigError` for one that does not start.

    Args:
        spec: the game.
        players: how many; by default two, or what the game insists on.
    """
    faults: list[str] = []
    for number in (players,) if players is not None else (2, 1, *range(3, MOST_PLAYERS + 1)):
        try:
            match = Match(spec, seed=0, players=number)
        except EnvironmentFailure as error:
            faults.append(str(error))
            continue
        _, text = match.observe()
        return GameFacts(players=match.players, lists_moves=bool(listed_moves(text)))
    raise ConfigError(f"textarena:{spec.name} does not start: {faults[0]}")


MOST_ACTION_CHARS = 4000
"""Of an answer that a game reads; Python reads no whole number of more than 4,300 digits, and the games do not expect that."""


class Match:
    """A game from its start to its end. Raises `EnvironmentFailure` for what the library raises.

    Args:
        spec: the game.
        seed: of everything that is drawn in it.
        players: how many.
    """

    def __init__(self, spec: GameSpec, *, seed: int, players: int) -> None:
        self._name = spec.name
        self._dice = Dice(seed)
        with self._dice.held():
            self._game = spec.make()
        self._guarded("reset", partial(self._game.reset, num_players=players, seed=seed))
        self.players = int(getattr(self._game.state, "num_players", players))
        """What the game makes of the number it was given."""
        self.over = False

    def observe(self) -> tuple[int, str]:
        """Whose turn it is, and what is new to them (or, from a wrapper, all that they are to see)."""
        player, seen = self._guarded("get_observation", self._game.get_observation)
        if isinstance(seen, str):
            return int(player), seen.strip()
        return int(player), "\n".join(filter(None, (self._line(player, part) for part in seen)))

    def _line(self, player: int, part: Any) -> str:
        """One message; their own words are in their conversation already, and are left out."""
        by_kind = {Enum if isinstance(one, Enum) else type(one): one for one in part}  # a few games give the three in another order
        sender, message, kind = by_kind.get(int), by_kind.get(str), by_kind.get(Enum)
        if not isinstance(sender, int) or not isinstance(message, str) or not isinstance(kind, Enum):
            raise EnvironmentFailure(f"textarena:{self._name}: an observation holds {part!r:.120}; allowed: (sender, text, kind)")
        if kind.name != "PLAYER_ACTION":
            return message.strip()
        return "" if sender == player else f"[{self._game.state.role_mapping.get(sender, f'Player {sender}')}] {message.strip()}"

    def act(self, action: str) -> None:
        """Let the player whose turn it is say something."""
        returned = self._guarded("step", partial(self._game.step, action[:MOST_ACTION_CHARS]))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise EnvironmentFailure(f"textarena:{self._name}: step returned {returned!r:.80}; allowed: (done, info)")
        self.over = bool(returned[0])

    def reward(self, player: int) -> float:
        """What a player gets out of a match that is over."""
        rewards, _ = self._guarded("close", self._game.close)
        if not isinstance(rewards, Mapping) or player not in rewards:
            raise EnvironmentFailure(f"textarena:{self._name}: the rewards are {rewards!r:.80}; there must be one for player {player}")
        return finite(f"textarena:{self._name}: the reward of player {player} is", rewards[player], "a finite number")

    def told(self, player: int) -> Mapping[str, Any]:
        """The game's notes on a player: `reason`, `invalid_move`, `turn_count`."""
        notes = getattr(self._game.state, "game_info", {})
        return notes.get(player, {}) if isinstance(notes, Mapping) else {}

    def _guarded(self, what: str, action: Callable[[], T]) -> T:
        with self._dice.held():
            try:
                return action()
            except (Exception, SystemExit) as error:  # the boundary to the library
                raise EnvironmentFailure(f"textarena:{self._name}: {what} raised {type(error).__name__}: {error}") from error


def listed_moves(text: str) -> list[str]:
    """The moves that a text says there are, as `[...]`; none where it does not say, or only their form."""
    found = _LISTED.findall(text)
    moves = _MOVE.findall(found[-1]) if found else []
    return [] if any(" X" in move for move in moves) else moves
