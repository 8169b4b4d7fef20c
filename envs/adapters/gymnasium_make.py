"""Making a gymnasium environment, and what one look at it tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from agentrl.environment import finite
from agentrl.envs.adapters import import_extra
from agentrl.envs.adapters.gymnasium_describe import action_names, known_about, observed
from agentrl.errors import ConfigError, EnvironmentFailure

T = TypeVar("T")

RANDOM_STEPS = 300
"""Steps of random play that are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """How an environment is made."""

    name: str
    options: str = "{}"
    """For `gymnasium.make`, as JSON."""
    random_map: int | None = None
    """Width of a map that is drawn from the seed, for FrozenLake."""
    names: tuple[str, ...] = ()
    """Of the actions, where they are given."""

    def make(self, seed: int) -> Any:
        """A new environment, not yet reset. Raises `ConfigError` where gymnasium cannot make it."""
        gym = import_extra("gymnasium", "gymnasium")
        options = json.loads(self.options)
        if self.random_map is not None:
            lake = import_extra("gymnasium.envs.toy_text.frozen_lake", "gymnasium")
            options["desc"] = lake.generate_random_map(size=self.random_map, seed=seed)
        elif options.get("map_name", "") is None and "desc" not in options:
            raise ConfigError(f"gymnasium:{self.name}: a map that is drawn without a seed differs in each episode; use random_map=8")
        try:
            module, _, name = self.name.rpartition(":")
            if module:
                import_extra(module, "gymnasium")
            spec = gym.spec(name)
            creator = gym.envs.registration.load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
            if "ansi" in (getattr(creator, "metadata", {}).get("render_modes") or ()):
                options["render_mode"] = "ansi"
            return gym.make(name, disable_env_checker=True, **options)
        except ConfigError:
            raise
        except Exception as error:  # the boundary to the library
            raise ConfigError(f"gymnasium cannot make {self.name!r} with {options}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one look at an environment tells."""

    names: tuple[str, ...] | None
    """Of the actions; None where they are text."""
    start: int
    """Number of the first action."""
    goal: str
    steps: int | None
    """Its own limit."""
    random_loss: float
    """Mean reward of a random step; 0 where that is positive."""


@lru_cache(maxsize=64)
def facts_of(game: Game) -> Facts:
    """Make the environment, once a process, and look at it. Raises `ConfigError` for one that text cannot play."""
    environment = game.make(0)
    try:
        names = action_names(environment, game.names)
        observation, _ = guarded(game.name, "reset", lambda: environment.reset(seed=0))
        observed(environment, observation)
        return Facts(
            names=names,
            start=int(environment.action_space.start) if names else 0,
            goal=known_about(environment).goal or f"You play {game.name}.",
            steps=environment.spec.max_episode_steps,
            random_loss=min(0.0, _random_reward(game.name, environment)),
        )
    finally:
        environment.close()


def _random_reward(name: str, environment: Any) -> float:
    """Mean reward of random steps, the same each time."""
    environment.action_space.seed(0)
    total = 0.0
    for number in range(RANDOM_STEPS):
        _, reward, terminated, truncated, _ = guarded(name, "step", lambda: environment.step(environment.action_space.sample()))
        total += finite(f"gymnasium:{name}: step rewarded", reward, "a finite number")
        if terminated or truncated:
            guarded(name, "reset", partial(environment.reset, seed=number))
    return total / RANDOM_STEPS


def guarded(name: str, what: str, action: Callable[[], T]) -> T:
    """Call the library's environment; what it raises is its own failure, not the player's. Raises `EnvironmentFailure`."""
    try:
        return action()
    except EnvironmentFailure:
        raise
    except Exception as error:  # the boundary to the library
        raise EnvironmentFailure(f"gymnasium:{name}: {what} raised {type(error).__name__}: {error}") from error
