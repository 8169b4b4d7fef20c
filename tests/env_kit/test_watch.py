"""Waits, timed and cut off."""

import pytest
import trio

from agentrl.env_kit.watch import Watch
from agentrl.errors import EnvironmentFailure


def passed(watch, *calls):
    """Which of the calls ended, of those that are made one after the other."""
    ended = []

    async def main():
        with watch.scope:
            for name, call in calls:
                await watch.passing(name, call)
                ended.append(name)

    trio.run(main)
    return ended


async def quick():
    await trio.lowlevel.checkpoint()


def test_every_wait_is_timed():
    watch = Watch()
    assert passed(watch, ("a", quick), ("b", quick)) == ["a", "b"] == watch.begun
    assert [name for name, seconds in watch.calls if seconds >= 0] == ["a", "b"]


def test_a_wait_is_cut_before_it_begins():
    begun = []

    async def call():
        begun.append(1)

    watch = Watch(1)
    assert passed(watch, ("a", call), ("b", call), ("c", call)) == ["a"]
    assert (len(begun), watch.scope.cancelled_caught) == (1, True)


def test_a_wait_is_cut_while_it_lasts():
    begun = []

    async def call():
        begun.append(1)
        await trio.sleep_forever()

    assert passed(Watch(0, begun=True), ("a", call)) == []
    assert begun == [1]


def test_what_a_cut_wait_raises_is_raised_alone():
    async def call():
        raise EnvironmentFailure("broken")

    with pytest.raises(EnvironmentFailure, match="broken"):
        passed(Watch(0, begun=True), ("a", call))
