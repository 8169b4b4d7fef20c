"""The episodes of an environment server: each has a task of its own that answers its numbered requests, and ends when nobody asks.

A request outlives the HTTP call that brought it. What was answered is kept, so that it can be said again; what is over is remembered for
a while, so that a late request is refused instead of starting something.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from agentrl.errors import EnvironmentFailure
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.answers import answer_of, opened_as
from agentrl.servers.env_server.refusals import Full, SessionOver, UnknownSession
from agentrl.servers.env_server.session import Session

if TYPE_CHECKING:
    from agentrl.records import Task
    from agentrl.servers.env_server.answers import Opened, Pool
    from agentrl.servers.env_server.session import Exchange

MOST_PAST = 4096
"""Sessions that are remembered when they are over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may take up."""

    max_sessions: int = 1024
    """Episodes at once."""
    idle_s: float = 600.0
    """A session that no request came for in so long is closed; a model may take long for a turn."""
    place_s: float = 5.0
    """Longest wait for a place before the server says that it is full."""
    poll_s: float = 5.0
    """Longest wait for an answer before the client is told to ask again, so that neither side waits for one that has gone."""


class Sessions:
    """All sessions of a server.

    Args:
        pool: where environments run.
        limits: what clients may take up.
        nursery: in which the sessions live.
    """

    def __init__(self, pool: Pool, limits: Limits, nursery: trio.Nursery) -> None:
        self.limits = limits
        self.opened = self.idled = self.failed = 0
        """Since the start: sessions, those that nobody asked for any more, those whose environment failed."""
        self._pool = pool
        self._nursery = nursery
        self._places = trio.CapacityLimiter(limits.max_sessions)
        self._live: dict[str, Session] = {}
        self._past: OrderedDict[str, tuple[Exchange | None, str]] = OrderedDict()
        """Those that are over: the last exchange where it may be asked for again, and why."""

    @property
    def load(self) -> int:
        """Sessions that hold a place."""
        return int(self._places.borrowed_tokens)

    @property
    def waiting(self) -> int:
        """Requests for a place."""
        return self._places.statistics().tasks_waiting

    async def open(self, key: str, task: Task, digest: bytes) -> bytes | None:
        """Start an episode, or wait on for the same start; returns the answer's body, None where there is none yet. Raises `Refusal`."""
        if key not in self._live and key not in self._past:
            await self._start(key, task, digest)
        return await self._answer(key, 0, None, digest)

    async def ask(self, key: str, number: int, request: protocol.Request, digest: bytes) -> bytes | None:
        """Have a request done, or wait on for the same one; returns as `open` does. Raises `Refusal`."""
        return await self._answer(key, number, request, digest)

    def take(self, key: str, sampled: protocol.Sampled) -> None:
        """Hand an assistant turn to an environment that plays its episode itself; a repeated one changes nothing. Raises `Refusal`."""
        session = self._found(key)
        session.touch()
        session.relay.take(sampled)

    def close(self, key: str) -> None:
        """End a session, whatever it is doing; one that is not known here cannot be opened any more."""
        if (session := self._live.get(key)) is not None:
            session.over = "its client closed it"
            session.scope.cancel()
        elif key not in self._past:
            self._remember(key, None, "its client closed it")

    async def _start(self, key: str, task: Task, digest: bytes) -> None:
        session = Session(key, digest, self.limits.idle_s)
        with trio.move_on_after(self.limits.place_s):
            await self._places.acquire_on_behalf_of(session)
            if key in self._live or key in self._past:  # the same request came twice, and both waited
                self._places.release_on_behalf_of(session)
                return
            self.opened += 1
            self._live[key] = session
            self._nursery.start_soon(self._live_through, session, task)
            return
        if key not in self._live and key not in self._past:
            raise Full(f"all {self.limits.max_sessions} sessions of this server are taken, and none ended within {self.limits.place_s:g} s")

    async def _answer(self, key: str, number: int, request: protocol.Request | None, digest: bytes) -> bytes | None:
        last = self._past[key][0] if key in self._past else None
        if last is not None and last.number == number:
            return last.same(digest).answer
        session = self._found(key)
        session.touch()
        exchange = session.admit(number, request, digest)
        with trio.move_on_after(self.limits.poll_s):
            await exchange.done.wait()
            if exchange.answer is None:
                raise SessionOver(f"session {key} is over: {session.over}")
        return exchange.answer

    def _found(self, key: str) -> Session:
        if (session := self._live.get(key)) is not None:
            return session
        if (past := self._past.get(key)) is not None:
            raise SessionOver(f"session {key} is over: {past[1]}")
        raise UnknownSession(f"there is no session {key} here: the server was restarted since it was opened, or another one opened it")

    async def _live_through(self, session: Session, task: Task) -> None:
        try:
            with session.scope:
                session.over = await self._converse(session, task)
            if not session.over:
                self.idled += 1
                session.over = f"no request came for {self.limits.idle_s:g} s"
        finally:
            self._places.release_on_behalf_of(session)
            del self._live[session.key]
            self._remember(session.key, None if session.scope.cancelled_caught else session.newest, session.over)
            session.newest.done.set()

    async def _converse(self, session: Session, task: Task) -> str:
        """Open the environment and answer requests; returns why that ended."""
        try:
            environment = await self._pool.open(task)
        except EnvironmentFailure as error:
            return self._fail(session, error)
        try:
            session.say(opened_as(environment.opened))
            async with trio.open_nursery() as nursery:
                over = await self._serve(session, environment, task, nursery)
                nursery.cancel_scope.cancel()
            return over
        finally:
            environment.close()

    async def _serve(self, session: Session, environment: Opened, task: Task, nursery: trio.Nursery) -> str:
        while True:
            request = await session.next_request()
            try:
                answer = await answer_of(request, environment, task, session.relay, nursery)
            except EnvironmentFailure as error:
                return self._fail(session, error)
            session.say(answer)
            if isinstance(answer, protocol.Graded | protocol.Compared):
                return "it was scored"

    def _fail(self, session: Session, error: EnvironmentFailure) -> str:
        self.failed += 1
        session.say(protocol.Failed(reason=str(error), traceback="\n".join(getattr(error, "__notes__", ()))))
        return f"its environment failed: {error}"

    def _remember(self, key: str, last: Exchange | None, why: str) -> None:
        self._past[key] = (last, why)
        if len(self._past) > MOST_PAST:
            self._past.popitem(last=False)
