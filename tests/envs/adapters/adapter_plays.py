"""Whole episodes of an adapted environment: real workers' protocol, real tokens, a scripted model."""

from __future__ import annotations

import trio
from rollout_fakes import FakeEngine, in_turn, make_tokenizer, thread_pool

from agentrl import registry
from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.environment import Episode
from agentrl.records import SamplingContract, Task
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler

TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)


def sampler(script, name="policy"):
    engine = FakeEngine(script, TOKENIZER, context_length=100_000)
    return Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract(policy=name), trained=name == "policy")


def spoken(script):
    """A script that is given the text of the newest message instead of token ids."""
    return lambda request: script(TOKENIZER.decode(request.ids).rpartition("<|start|>user\n")[2])


def task_of(spec, index=0, split="train"):
    return Task.from_row(spec, registry.load(spec)().tasks(split)[index])


def goldens(spec, task):
    environment = registry.load(spec)()
    try:
        return environment.golden(task)
    finally:
        environment.close()


def play(spec, tasks, *scripts, others=(), **sampling):
    """Play one episode a task, side by side in one worker; a script is texts in turn, or a function of the request."""
    others = {other.contract.policy: other for other in others}
    sampling = SamplingConfig(**{"max_turns": 200, "max_tokens": 400, **sampling})
    played = {}

    async def main():
        async with thread_pool(spec) as pool, trio.open_nursery() as nursery:

            async def one(index, task):
                script = scripts[index % len(scripts)]
                policy = sampler(script if callable(script) else in_turn(*script))
                played[index] = await play_episode(
                    task, 0, sampler=policy, others=others, pool=pool, sampling=sampling, rollout=RolloutConfig(), seed=3
                )

            for index, task in enumerate(tasks):
                nursery.start_soon(one, index, task)

    trio.run(main)
    return [played[index] for index in range(len(tasks))]


def episode_of(task, answer):
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return Episode(task=task, prompt=messages[:1], messages=messages, completion_ids=[1], ending="complete")
