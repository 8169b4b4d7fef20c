"""Games for textarena's registry that misbehave; importing this registers them."""

from __future__ import annotations

import random

import textarena
from textarena.envs.registration import ENV_REGISTRY


class Odd(textarena.Env):
    """A game for one or two; says a number, and does what it is told to do wrong."""

    def __init__(self, players: int = 1, rewards: object = None) -> None:
        self.players, self.rewards = players, rewards

    def reset(self, num_players, seed=None):
        state = textarena.SinglePlayerState if self.players == 1 else textarena.TwoPlayerState
        self.state = state(num_players=num_players, seed=seed, max_turns=5)
        self.state.reset(game_state={}, player_prompt_function=lambda player_id, game_state: f"Drawn: {random.random()}")

    def step(self, action):
        if "raise" in action:
            raise KeyError("no such square")
        if "exit" in action:
            raise SystemExit(3)
        if "odd" in action:
            return None
        self.state.add_observation(
            from_id=self.state.current_player_id, message=action, observation_type=textarena.ObservationType.PLAYER_ACTION
        )
        self.state.add_observation(message=f"Next: {random.random()}", observation_type=textarena.ObservationType.GAME_MESSAGE)
        if "end" in action:
            self.state.rewards, self.state.done = self.rewards, True
        if "number" in action:
            self.state.observations[0].append((1, 2, 3))
        return self.state.step()


REWARDS = {"Fine": {0: 0.5}, "Nan": {0: float("nan")}, "Text": {0: "much"}, "Missing": {1: 1.0}, "Nothing": None}
"""Name of a game -> what it says its rewards are."""

for key, value in REWARDS.items():
    if f"Odd{key}-v0" not in ENV_REGISTRY:
        textarena.register(id=f"Odd{key}-v0", entry_point=f"{__name__}:Odd", rewards=value)
