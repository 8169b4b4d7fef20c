"""Gymnasium environments that misbehave, or that speak; importing this registers them."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces


class Odd(gymnasium.Env):
    """Does what its `fault` says after the first step."""

    action_space = spaces.Discrete(2, start=5)
    observation_space = spaces.Tuple((spaces.Discrete(10), spaces.MultiDiscrete([3, 3])))
    closed = 0
    broken = False

    def __init__(self, fault: str = "", render_mode: str | None = None) -> None:
        self.fault, self.render_mode, self.steps = fault, render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def _seen(self):
        return int(self.np_random.integers(10)), np.array([self.steps % 3, 0])

    def step(self, action):
        assert action in (5, 6)
        self.steps += 1
        if self.broken or (self.steps > 1 and self.fault == "raise"):
            raise RuntimeError("the emulator died")
        if self.steps > 1 and self.fault == "short":
            return self._seen(), 1.0
        reward = float("nan") if self.steps > 1 and self.fault == "nan" else float(action - 5)
        return self._seen(), reward, False, False, {}

    def close(self):
        type(self).closed += 1


class Echo(gymnasium.Env):
    """Wants a word back."""

    action_space = spaces.Text(max_length=5, charset="abc")
    observation_space = spaces.Dict({"say": spaces.Text(5, charset="abc"), "left": spaces.Box(0, 9, (1,))})
    render_mode = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abc"), 3))
        return self._seen(), {}

    def _seen(self):
        return {"say": self.word, "left": np.array([1.0])}

    def step(self, action):
        return self._seen(), float(action == self.word), True, False, {}


class Fails(Odd):
    """Breaks from the start."""

    def reset(self, *, seed=None, options=None):
        raise OSError("no display")


for name, kind in (("Odd", Odd), ("Echo", Echo), ("Fails", Fails)):
    if f"agentrl_tests/{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"agentrl_tests/{name}-v0", kind)
gymnasium.register("agentrl_tests/Short-v0", Odd, max_episode_steps=3)
