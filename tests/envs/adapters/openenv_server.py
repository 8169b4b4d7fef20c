"""Real OpenEnv servers for tests, run by a Python that has `openenv`: `openenv_server.py KIND`, which prints its port."""

import os
import socket
import sys
import threading

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation


class Guess(Action):
    """Guess the number, or do something else."""

    guess: int
    """A number from 0 to 9."""
    trick: str = ""


class Hint(Observation):
    hint: str


class Number(Environment):
    """Guess a number, which is the seed modulo 10."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._number, self._steps = None, 0

    def reset(self, seed=None, episode_id=None, start="0 to 9", **kwargs):
        self._number, self._steps = (seed or 0) % 10, 0
        return Hint(hint=f"Guess a number, {start}.")

    def step(self, action, timeout_s=None, **kwargs):
        if self._number is None:
            raise RuntimeError("step before reset")
        if action.trick == "raise":
            raise RuntimeError("the dice fell off the table")
        if action.trick == "hang":
            threading.Event().wait(5)
        if action.trick == "exit":
            os._exit(3)
        self._steps += 1
        if action.trick == "none":
            return Hint(hint="no reward")
        right = action.guess == self._number
        hint = "right" if right else "higher" if action.guess < self._number else "lower"
        return Hint(hint=hint, reward=1.0 if right else -0.1, done=right)

    @property
    def state(self):
        return State(step_count=self._steps)


class Say(Action):
    message: str


class Heard(Observation):
    echoed: str
    length: int


class Echo(Number):
    """Hear what is said, until it is `stop`."""

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Heard(echoed="", length=0)

    def step(self, action, timeout_s=None, **kwargs):
        return Heard(echoed=action.message, length=len(action.message), reward=len(action.message) / 10, done=action.message == "stop")


class Tools(MCPEnvironment):
    """An environment of MCP tools."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        mcp = FastMCP("tools")

        @mcp.tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        @mcp.tool
        def fail() -> str:
            """Fail."""
            raise ValueError("out of order")

        super().__init__(mcp)

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation(metadata={"ready": True})

    def _step_impl(self, action, timeout_s=None, **kwargs):
        return Observation()

    @property
    def state(self):
        return State()


KINDS = {"number": (Number, Guess, Hint), "echo": (Echo, Say, Heard), "tools": (Tools, CallToolAction, CallToolObservation)}

if __name__ == "__main__":
    environment, action, observation = KINDS[sys.argv[1]]
    app = create_app(environment, action, observation, env_name=sys.argv[1], max_concurrent_envs=int(sys.argv[2]))
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)  # from now on connections wait
    uvicorn.Server(uvicorn.Config(app, log_level="error", ws="websockets-sansio")).run(sockets=[listener])
