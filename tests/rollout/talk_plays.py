"""What tests of episodes that an environment plays itself share: a play of one, and eyes for its tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import trio
import trio.testing
from rollout_fakes import FakeEngine, make_task, make_tokenizer, thread_pool

from agentrl import registry
from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.records import SamplingContract
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler
from agentrl.rows import rows_of

SPEC = str(Path(__file__).parent / "talk_env.py")
TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)
TALK = registry.import_module(SPEC)
HI = {"role": "user", "content": "hi"}
LOOK = {"name": "look", "parameters": {"type": "object", "properties": {"far": {"type": "integer"}}, "required": []}}


def sampler(script, name="policy", *, context_length=4096):
    engine = FakeEngine(script, TOKENIZER, context_length=context_length)
    return Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract(policy=name), trained=name == "policy")


class Overdue:
    """Called by a program, from its own thread: the deadline of its episode passes then, however slow the machine is."""

    def __init__(self):
        self.clock = trio.testing.MockClock(rate=1.0)
        self.token = None

    def __call__(self):
        self.token.run_sync_soon(self.clock.jump, RolloutConfig().episode_timeout_s)


def play(program, script, *, name="Talk", others=(), context_length=4096, rollout=None, policy=None, overdue=None, **sampling):
    """Play one episode as `program(task, llm)` says, on the clock of `overdue` where it is given; also the engine of the policy."""
    TALK.PLAY = program
    policy = policy or sampler(script, context_length=context_length)

    async def main():
        if overdue is not None:
            overdue.token = trio.lowlevel.current_trio_token()
        async with thread_pool(f"{SPEC}:{name}") as pool:
            return await play_episode(
                make_task(),
                0,
                sampler=policy,
                others={other.contract.policy: other for other in others},
                pool=pool,
                sampling=SamplingConfig(**sampling),
                rollout=rollout or RolloutConfig(),
                seed=3,
            )

    return trio.run(main, clock=overdue and overdue.clock), policy.engine


def sampled(turn):
    return turn.span.ids[turn.span.sampled].tolist()


def trained_tokens(rollout):
    return Counter(int(token) for row in rows_of(rollout) for token in row.ids[row.trained])


def own_tokens(rollout):
    return Counter(token for turn in rollout.own_turns for token in sampled(turn))
