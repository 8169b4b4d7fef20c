import pytest
import trio
import trio.testing

from agentrl.errors import EnvironmentFailure
from agentrl.records import Score
from agentrl.rollout import messages
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.relay import Relay


def sample(number):
    return messages.Sample(session=3, number=number, prompt="hi", policy="policy")


def relayed(play, follow):
    """Run `play(answer)` as an environment and `follow(relay)` as its client."""

    async def main():
        relay = Relay()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run, play)
            with trio.fail_after(10):
                await follow(relay)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_turns_that_overlap_are_answered_in_any_order():
    texts = {}

    async def play(answer):
        async def one(number):
            texts[number] = (await answer(sample(number))).text

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
        return messages.Finished(call=1, score=None, spent=True, rewards={2: 0.5})

    async def follow(relay):
        wanted = []
        while len(wanted) < 3:
            wanted += [one.number for one in (await relay.news()).samples]
        assert sorted(wanted) == [0, 1, 2]
        for number in (2, 0, 1):
            relay.take(protocol.Sampled(number=number, text=f"turn {number}"))
        finished = protocol.Finished(score=None, spent=True, rewards={2: 0.5})
        assert await relay.news() == protocol.Turns(finished=finished) == await relay.news()
        assert texts == {number: f"turn {number}" for number in range(3)}

    relayed(play, follow)


def test_a_turn_that_is_no_longer_wanted_is_told():
    async def play(answer):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, sample(0))
                await answer(sample(1))
                scope.cancel()
        return messages.Finished(call=1, score=Score(value=1.0))

    async def follow(relay):
        wanted = []
        while len(wanted) < 2:
            wanted += [one.number for one in (await relay.news()).samples]
        relay.take(protocol.Sampled(number=1, text="x"))
        relay.take(protocol.Sampled(number=0, text="too late"))
        last = await relay.news()
        assert last.dropped == [0] or last.finished is not None
        while last.finished is None:
            last = await relay.news()
        assert last.finished.score == protocol.Graded(value=1.0, parts={}, reason="", details={})

    relayed(play, follow)


def test_a_failure_is_raised_each_time():
    async def play(answer):
        raise EnvironmentFailure("by nothing")

    async def follow(relay):
        for _ in range(2):
            with pytest.raises(EnvironmentFailure, match="by nothing"):
                await relay.news()

    relayed(play, follow)
