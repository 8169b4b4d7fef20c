"""An environment that plays its episode itself, on the server: what it asks of the client's model, and what that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from agentrl.errors import EnvironmentFailure
from agentrl.rollout import messages
from agentrl.servers.env_server import protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Play = Callable[[Callable[[messages.Sample], Awaitable[messages.Sampled]]], Awaitable[messages.Finished]]


@dataclass(slots=True)
class _Wanted:
    session: int
    arrived: trio.Event
    sampled: messages.Sampled | None = None


class Relay:
    """Between the environment's requests for turns and a client that fetches them and answers, in any order."""

    def __init__(self) -> None:
        self.started = False
        self._samples: list[protocol.Sample] = []
        self._dropped: list[int] = []
        self._wanted: dict[int, _Wanted] = {}
        self._end: protocol.Finished | EnvironmentFailure | None = None
        self._changed = trio.Event()

    async def run(self, play: Play) -> None:
        """Let the environment play, to its end or failure."""
        try:
            finished = await play(self._sample)
        except EnvironmentFailure as error:
            self._end = error
        else:
            score = None if finished.score is None else protocol.graded(finished.score)
            self._end = protocol.Finished(score=score, spent=finished.spent, rewards=finished.rewards)
        self._changed.set()

    async def news(self) -> protocol.Turns:
        """What the environment asks for, or that it has finished; waits until there is something. Raises its `EnvironmentFailure`."""
        while True:
            if isinstance(self._end, EnvironmentFailure):
                raise self._end
            if self._end is not None:
                return protocol.Turns(finished=self._end)
            if self._samples or self._dropped:
                turns = protocol.Turns(samples=self._samples, dropped=self._dropped)
                self._samples, self._dropped = [], []
                return turns
            self._changed = trio.Event()
            await self._changed.wait()

    def take(self, sampled: protocol.Sampled) -> None:
        """Hand over the answer to a sample; one that nobody waits for, or that has come before, is ignored."""
        wanted = self._wanted.get(sampled.number)
        if wanted is not None and wanted.sampled is None:
            fields = {name: getattr(sampled, name) for name in sampled.__struct_fields__}
            wanted.sampled = messages.Sampled(session=wanted.session, **fields)
            wanted.arrived.set()

    async def _sample(self, sample: messages.Sample) -> messages.Sampled:
        wanted = self._wanted[sample.number] = _Wanted(sample.session, trio.Event())
        fields = {name: getattr(sample, name) for name in protocol.Sample.__struct_fields__}
        self._samples.append(protocol.Sample(**fields))
        self._changed.set()
        try:
            await wanted.arrived.wait()
        except trio.Cancelled:
            self._dropped.append(sample.number)
            self._changed.set()
            raise
        finally:
            del self._wanted[sample.number]
        assert wanted.sampled is not None
        return wanted.sampled
