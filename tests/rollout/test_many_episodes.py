"""A thousand episodes at once in one process, beside a tool that burns a core."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from rollout_fakes import FakeEngine, make_task, make_tokenizer

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.records import SamplingContract
from agentrl.rollout.episode import play_episode
from agentrl.rollout.pool import EnvPool
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler

SPEC = f"{Path(__file__).parent / 'talk_env.py'}:Walk"
TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)
EPISODES, TURNS, BURN_S = 1000, 4, 30.0


class Waiting(FakeEngine):
    """Answers nobody before so many ask at once, however long they take to get there, and then after the time that an engine would take."""

    def __init__(self, script, *, together, latency_s):
        super().__init__(script, TOKENIZER)
        self.running = self.most = 0
        self._together, self._latency_s = together, latency_s
        self._all_ask = trio.Event()

    async def generate(self, request):
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running >= self._together:
            self._all_ask.set()
        with trio.move_on_after(120):  # where an episode failed before, the test is to tell why
            await self._all_ask.wait()
        await trio.sleep(self._latency_s)
        try:
            return await super().generate(request)
        finally:
            self.running -= 1


def walker(request):
    """Steps, and then says goodbye; the first episode burns a core in place of its first step."""
    text = TOKENIZER.decode(request.ids)
    done = text.count("at ") + text.count("burnt")
    if done >= TURNS:
        return "bye"
    call = (
        f'{{"name": "burn", "arguments": {{"seconds": {BURN_S}}}}}'
        if "walk 0<|" in text and not done
        else '{"name": "step", "arguments": {}}'
    )
    return f"<tool_call>{call}</tool_call>"


@pytest.mark.slow
def test_a_thousand_episodes_of_several_turns_beside_a_tool_that_burns_a_core():
    engine = Waiting(walker, together=EPISODES, latency_s=2.0)
    sampler = Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract())
    played, lags = [], []

    async def play(pool, number):
        task = make_task(prompt=f"{number}")
        rollout = RolloutConfig(env_workers=4, tool_timeout_s=120)
        one = await play_episode(
            task, 0, sampler=sampler, others={}, pool=pool, sampling=SamplingConfig(max_tokens=64), rollout=rollout, seed=0
        )
        played.append(one)

    async def watch():
        while True:
            asked = trio.current_time() + 0.05
            await trio.sleep_until(asked)
            lags.append(trio.current_time() - asked)

    async def main():
        async with EnvPool(SPEC, [], RolloutConfig(env_workers=4, tool_timeout_s=120)) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as episodes:
                for number in range(EPISODES):
                    episodes.start_soon(play, pool, number)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert [one.ending for one in played] == ["complete"] * EPISODES, {one.reason for one in played}
    assert sorted(one.score.value for one in played) == [TURNS - 1.0] + [float(TURNS)] * (EPISODES - 1)
    assert engine.most == EPISODES
    late = sorted(lags)
    median, most_of, most = (late[at] * 1000 for at in (len(late) // 2, int(len(late) * 0.99), -1))
    print(f"loop lag: median {median:.1f} ms, 99% {most_of:.1f} ms, most {most:.1f} ms")
