"""A rollout process's loop in this process, spoken to over its channel."""

from __future__ import annotations

import trio
import trio.testing
from rollout_fakes import ENV, FakeEngine, in_turn, make_task, make_tokenizer, thread_pool

from agentrl import wire
from agentrl.config import RunConfig
from agentrl.dispatch import FromRollout, Play, Played, ToRollout
from agentrl.records import SamplingContract, Version
from agentrl.rollout.render import Renderer
from agentrl.rollout.worker import Worker

TOKENIZER = make_tokenizer()
RIVAL = SamplingContract(policy="reference")


def serve(play, name):
    """The group that comes back of a `Play`."""

    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        channel = wire.Channel(ours, FromRollout)
        async with thread_pool(f"{ENV}:{name}") as pool, trio.open_nursery() as nursery:
            engine = FakeEngine(in_turn("ab", "a", "a", "a"), TOKENIZER)
            worker = Worker(wire.Channel(theirs, ToRollout), RunConfig(model="m"), engine, Renderer(TOKENIZER), pool)
            nursery.start_soon(worker.serve)
            await channel.send(play)
            while not isinstance(message := await channel.receive(), Played):
                pass
            await ours.aclose()
            return message.group

    return trio.run(main)


def make_play(**options):
    task = make_task(prompt=[{"role": "user", "content": "hi"}])
    return Play(index=7, task=task, dispatched=Version(step=2), group_size=4, contract=SamplingContract(), seed=0, **options)


def test_a_group_comes_back_with_its_rivals_and_preferences():
    group = serve(make_play(rival=RIVAL, judged=True), "Judged")
    assert (group.index, group.dispatched.step, len(group.rollouts)) == (7, 2, 4)
    assert [rollout.turns[0].contract.policy for rollout in group.rollouts] == ["policy", "policy", "reference", "reference"]
    assert sorted(group.preferences) in ([0.0, 0.5], [0.5, 1.0])  # one member, of whichever pair, has the longer answer


def test_by_default_there_are_neither():
    group = serve(make_play(), "Judged")
    assert group.preferences == ()
    assert {rollout.turns[0].contract for rollout in group.rollouts} == {SamplingContract()}
