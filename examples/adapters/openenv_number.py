"""An OpenEnv server whose game is to guess a number.

In a Python that has openenv: python examples/adapters/openenv_number.py 8000
In ours, which needs websockets (pip install "agentrl[openenv]"): agentrl train --env openenv:http://127.0.0.1:8000 --model quickstart
"""

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_app


class Guess(Action):
    """Guess the number."""

    guess: int
    """From 0 to 9."""


class Hint(Observation):
    """What a guess earns."""

    hint: str


class Number(Environment):
    """The seed of the reset is the number, modulo 10."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Hint:
        self._number = (seed or 0) % 10
        return Hint(hint="Guess a number from 0 to 9.")

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Hint:
        right = action.guess == self._number
        hint = "right" if right else "higher" if action.guess < self._number else "lower"
        return Hint(hint=hint, reward=1.0 if right else -0.1, done=right)

    @property
    def state(self) -> State:
        return State()


if __name__ == "__main__":
    app = create_app(Number, Guess, Hint, env_name="number", max_concurrent_envs=256)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
