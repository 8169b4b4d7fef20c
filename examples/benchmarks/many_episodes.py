"""A thousand episodes of several turns at once in one process, beside a tool that burns a core; one JSON line.

    python examples/benchmarks/many_episodes.py

The engine is simulated: each answer comes after 3 to 7 s. `loop_lag` is how much later than asked the event loop wakes up, every 50 ms; the
baseline is the same loop with nothing to do, right before. Nothing of an episode may block it: tools run in worker processes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import trio

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.engines.protocol import Completion, Request
from agentrl.environment import Environment, Episode
from agentrl.quickstart import model_path
from agentrl.records import SamplingContract, Task, Version, VersionRun
from agentrl.rollout.episode import play_episode
from agentrl.rollout.pool import EnvPool
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler
from agentrl.rollout.worker import spare_the_loop

TURNS = 4
CONFIG = RolloutConfig(env_workers=4, tool_timeout_s=120)


class Walk(Environment):
    """Steps, of which one episode's first burns a core instead."""

    def start(self, task: Task) -> list[dict[str, Any]]:
        self._steps = 0
        return [{"role": "user", "content": f"walk {task.row['number']}"}]

    def step(self, seconds: float) -> str:
        """Walk."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        self._steps += 1
        return f"at {self._steps}"

    def score(self, episode: Episode) -> float:
        return float(self._steps)


class SimulatedEngine:
    """Says what a scripted walker says, after a while."""

    context_length = 4096

    def __init__(self, renderer: Renderer, burn_s: float) -> None:
        self.running = self.most = 0
        self._burn_s = burn_s
        self._encode = renderer.prompt
        self._end = renderer.stop_ids[0]
        self._turns: dict[str, int] = {}

    async def generate(self, request: Request) -> Completion:
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(random.Random(request.seed).uniform(3, 7))
        self.running -= 1
        turn = self._turns[request.session] = self._turns.get(request.session, -1) + 1
        burn = self._burn_s if turn == 0 and len(self._turns) == 1 else 0
        call = f'<tool_call>{{"name": "step", "arguments": {{"seconds": {burn}}}}}</tool_call>' if turn < TURNS else "bye"
        ids = np.array([*self._encode(call).ids, self._end], dtype=np.int32)
        run = VersionRun(version=Version(), start=0, end=len(ids))
        return Completion(ids=ids, logprobs=np.full(len(ids), -1.0, dtype=np.float32), versions=(run,), finish_reason="stop")

    async def aclose(self) -> None: ...


async def watch(lags: list[float]) -> None:
    """Note how late the loop wakes up."""
    while True:
        asked = trio.current_time() + 0.05
        await trio.sleep_until(asked)
        lags.append(trio.current_time() - asked)


def figures(lags: list[float]) -> dict[str, float]:
    ordered = sorted(lags)
    return {
        f"{name}_ms": round(1000 * ordered[int(len(ordered) * place)], 1)
        for name, place in (("median", 0.5), ("p99", 0.99), ("most", 0.9999))
    }


async def measure(episodes: int, burn_s: float) -> dict[str, Any]:
    renderer = Renderer.load(model_path())
    engine = SimulatedEngine(renderer, burn_s)
    sampler = Sampler(engine=engine, renderer=renderer, contract=SamplingContract())
    idle: list[float] = []
    busy: list[float] = []
    scores: list[float | None] = []

    async def play(pool: EnvPool, number: int) -> None:
        task = Task.from_row("walk", {"number": number})
        sampling = SamplingConfig(max_tokens=64)
        one = await play_episode(task, 0, sampler=sampler, others={}, pool=pool, sampling=sampling, rollout=CONFIG, seed=0)
        scores.append(one.score.value)

    with trio.move_on_after(5):
        await watch(idle)
    started = time.perf_counter()
    async with EnvPool(f"{Path(__file__)}:Walk", [], CONFIG) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(watch, busy)
        async with trio.open_nursery() as all_episodes:
            for number in range(episodes):
                all_episodes.start_soon(play, pool, number)
        nursery.cancel_scope.cancel()
    return {
        "benchmark": "many_episodes",
        "episodes": episodes,
        "turns": TURNS + 1,
        "in_flight_at_most": engine.most,
        "scored": sum(score == TURNS for score in scores),
        "seconds": round(time.perf_counter() - started, 1),
        "burn_s": burn_s,
        "loop_lag": figures(busy),
        "idle_loop_lag": figures(idle),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--burn-s", type=float, default=30.0)
    options = parser.parse_args()
    spare_the_loop()  # as a rollout process does
    print(json.dumps(trio.run(measure, options.episodes, options.burn_s)))


if __name__ == "__main__":
    main()
