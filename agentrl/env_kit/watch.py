"""Every wait for an environment, timed and counted; one of them may be cut off, to see what an episode leaves behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from agentrl.rollout.envsession import alone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentrl.environment import Episode
    from agentrl.records import Score, Task
    from agentrl.rollout.messages import Finished, Observation, Replied, Sample, Sampled
    from agentrl.rollout.pool import EnvPool, EnvSession

T = TypeVar("T")


class Watch:
    """Takes note of an episode's waits.

    Args:
        cut_at: number of the wait at which the episode is cancelled; None for none.
        begun: whether it is cancelled once that wait has begun, not before.
    """

    def __init__(self, cut_at: int | None = None, *, begun: bool = False) -> None:
        self.scope = trio.CancelScope()
        """Around the episode."""
        self.calls: list[tuple[str, float]] = []
        """What was waited for and seconds, in the order in which the waits ended."""
        self.begun: list[str] = []
        """What was waited for, in the order in which the waits began."""
        self._cut_at = cut_at
        self._cut_begun = begun

    async def passing(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Wait for a call."""
        cut = len(self.begun) == self._cut_at
        self.begun.append(what)
        if cut and not self._cut_begun:
            self.scope.cancel()
            await trio.lowlevel.checkpoint()
        started = time.monotonic()
        try:
            return await (self._cut_during(call) if cut else call())
        finally:
            self.calls.append((what, time.monotonic() - started))

    async def _cut_during(self, call: Callable[[], Awaitable[T]]) -> T:
        async def cut() -> None:
            await trio.lowlevel.checkpoint()
            self.scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut)
                return await call()
        except BaseExceptionGroup as group:
            raise alone(group) from None


class WatchedPool:
    """An `EnvPool` for one episode, its waits watched."""

    def __init__(self, pool: EnvPool, watch: Watch) -> None:
        self._pool = pool
        self._watch = watch

    def as_pool(self) -> EnvPool:
        """The same, as an episode wants it: it only opens sessions."""
        return cast("EnvPool", self)

    async def open(self, task: Task) -> WatchedSession:
        """Start an episode."""
        return WatchedSession(await self._watch.passing("start", lambda: self._pool.open(task)), self._watch)


class WatchedSession:
    """An `EnvSession`, its waits watched."""

    def __init__(self, session: EnvSession, watch: Watch) -> None:
        self._session = session
        self._watch = watch
        self.opened = session.opened

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Observation:
        """Call a tool."""
        return await self._watch.passing(f"tool {name}", lambda: self._session.call_tool(name, arguments))

    async def reply(self, text: str) -> Replied:
        """Ask what the user says."""
        return await self._watch.passing("reply", lambda: self._session.reply(text))

    async def play(self, answer: Callable[[Sample], Awaitable[Sampled]]) -> Finished:
        """Have the environment play."""
        return await self._watch.passing("episode", lambda: self._session.play(answer))

    async def score(self, episode: Episode) -> Score:
        """Score the episode."""
        return await self._watch.passing("score", lambda: self._session.score(episode))

    def close(self) -> None:
        """Close the episode."""
        self._session.close()
