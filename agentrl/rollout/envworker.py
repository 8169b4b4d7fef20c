"""One environment worker as the event loop sees it: calls with deadlines, and a certain end.

A call that misses its deadline retires the worker: it takes no new episodes, the others may finish within a grace period, then the
process group is killed. A worker that dies fails the calls of all its episodes at once.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import trio

from agentrl import wire
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.rollout.messages import Close, Closed, Drop, Failed, Ready, Request, Response, Sample, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.rollout.hostprocess import HostProcess


class EnvironmentTimeout(EnvironmentFailure):
    """Code of an environment or a reward did not come back before its deadline."""


class SetupDied(EnvironmentFailure):
    """A worker ended before it was ready."""


class _Call:
    """A request whose answer is awaited."""

    __slots__ = ("answer", "answered", "failure")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: Response | None = None
        self.failure = ""


class EnvWorker:
    """A worker process and its episodes.

    Args:
        host: the started process.
        grace_s: how long its other episodes may go on once a call has missed its deadline.
        close_s: how long closing an environment may take.
    """

    def __init__(self, host: HostProcess, *, grace_s: float, close_s: float) -> None:
        self.retired = trio.Event()
        """Set when the worker takes no more episodes."""
        self._host = host
        self._grace_s = grace_s
        self._close_s = close_s
        self._channel: wire.Channel[Response] = wire.Channel(host.stream, Response)
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self.askers: dict[int, Callable[[Sample | Drop], None]] = {}
        """By episode: told what an environment asks for that plays itself."""
        self._open: set[int] = set()
        self._closing: dict[int, float] = {}
        self._closing_waits = trio.Event()
        self._outgoing = bytearray()
        self._outgoing_waits = trio.Event()
        self._finished = trio.Event()
        self._why = "the run is over"
        self._died = False
        self._gone = ""
        self.served = False
        """Whether it ever finished an episode."""

    @property
    def load(self) -> int:
        """Episodes that it holds."""
        return len(self._open) + len(self._closing)

    async def run(self) -> None:
        """Own the process until it has ended. Waits for a death, or for a retirement and then the last episode or the grace period."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive)
                nursery.start_soon(self._send)
                nursery.start_soon(self._watch_process)
                nursery.start_soon(self._watch_closing)
                await self.retired.wait()
                with trio.move_on_after(self._grace_s):
                    await self._finished.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.retired.set()
            with trio.CancelScope(shield=True):
                how = await self._host.end()
            self._fail_all(f"its worker died: it {how}" if self._died else f"its worker was ended: {self._why}")

    async def set_up(self, setup: Setup, timeout_s: float) -> None:
        """Import the environment. Raises `ConfigError` for what is wrong with it, `SetupDied` where the process ended meanwhile."""
        try:
            answer = await self._ask(0, setup, timeout_s, "its import")
        except EnvironmentTimeout as error:
            words = self._host.last_words()
            raise ConfigError(f"environment {setup.spec!r}: {error}" + (f"; its last lines:\n{words}" if words else "")) from None
        except EnvironmentFailure as error:
            raise SetupDied(f"environment {setup.spec!r}: {error}; its last lines:\n{self._host.last_words() or '(none)'}") from None
        if isinstance(answer, Failed):
            fault = ConfigError(answer.reason)
            fault.add_note(answer.traceback)
            raise fault
        if not isinstance(answer, Ready):
            raise SetupDied(f"environment {setup.spec!r}: a worker answered {type(answer).__name__} to its set-up")

    def next_number(self) -> int:
        """A number for a call."""
        return next(self._numbers)

    def admit(self, session: int) -> None:
        """Count an episode in."""
        self._open.add(session)

    async def ask(self, session: int, call: int, request: Request, timeout_s: float, what: str) -> Response:
        """Send a request and wait for its answer.

        Raises `EnvironmentTimeout` past the deadline, `EnvironmentFailure` where user code failed or the worker died.
        """
        try:
            answer = await self._ask(call, request, timeout_s, what)
        except EnvironmentTimeout as error:
            self._open.discard(session)  # lost: its thread still runs, and only the end of the process ends it
            self.retire(f"in another episode, {error}")
            raise
        if isinstance(answer, Failed):
            failure = EnvironmentFailure(answer.reason)
            failure.add_note(answer.traceback)
            raise failure
        return answer

    async def _ask(self, number: int, request: Request, timeout_s: float, what: str) -> Response:
        if self._gone:
            raise EnvironmentFailure(self._gone)
        call = self._calls[number] = _Call()
        self.post(request)
        try:
            with trio.move_on_after(timeout_s):
                await call.answered.wait()
        finally:
            del self._calls[number]
        if call.failure:
            raise EnvironmentFailure(call.failure)
        if call.answer is None:
            raise EnvironmentTimeout(f"{what} took longer than {timeout_s:g} s")
        return call.answer

    def post(self, request: Request) -> None:
        """Send without waiting."""
        # never awaits: a worker that has stopped reading delays nobody beyond their own deadlines
        self._outgoing += wire.pack(request)
        self._outgoing_waits.set()

    def close(self, session: int, *, busy_until: float = -math.inf, ends_itself: bool = False) -> None:
        """Count an episode out, without waiting. A worker that has not closed it in time is retired.

        Args:
            session: the episode; nothing happens where it is not open.
            busy_until: the deadline of a call that may still run.
            ends_itself: whether the worker closes it unasked.
        """
        if session not in self._open:
            return
        self._open.discard(session)
        if not self._gone:
            self._closing[session] = max(trio.current_time(), busy_until) + self._close_s
            self._closing_waits.set()
            if not ends_itself:
                self.post(Close(session=session))

    def close_all(self) -> None:
        """Count every episode out."""
        for session in list(self._open):
            self.close(session)

    def retire(self, why: str) -> None:
        """Take no more episodes; end when the last one does. The first reason stays."""
        if not self.retired.is_set():
            self._why = why
            self.retired.set()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.retired.is_set() and not self._open and not self._closing:
            self._finished.set()

    def _lost(self) -> None:
        self._died = True
        self.retired.set()
        self._finished.set()

    async def _send(self) -> None:
        while True:
            await self._outgoing_waits.wait()
            frames, self._outgoing = self._outgoing, bytearray()
            self._outgoing_waits = trio.Event()
            try:
                await self._host.stream.send_all(frames)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return self._lost()

    async def _receive(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                if isinstance(message, Closed):
                    self._on_closed(message.session)
                elif isinstance(message, Sample | Drop):
                    if (asker := self.askers.get(message.session)) is not None:
                        asker(message)
                elif (call := self._calls.get(getattr(message, "call", 0))) is not None:
                    call.answer = message
                    call.answered.set()
            self._lost()
        except wire.FrameError as error:
            self.retire(str(error))
            self._finished.set()

    def _on_closed(self, session: int) -> None:
        self.served = True
        self._closing.pop(session, None)
        self._open.discard(session)  # where it was closed unasked, before the caller said so
        self._end_if_idle()

    async def _watch_process(self) -> None:
        await self._host.ended()
        self._lost()

    async def _watch_closing(self) -> None:
        while True:
            while not self._closing:
                self._closing_waits = trio.Event()
                await self._closing_waits.wait()
            session, deadline = next(iter(self._closing.items()))
            await trio.sleep_until(deadline)
            if self._closing.pop(session, None) is not None:
                self.retire(f"closing an environment took longer than {self._close_s:g} s")

    def _fail_all(self, reason: str) -> None:
        self._gone = reason
        self._open.clear()
        self._closing.clear()
        for call in self._calls.values():
            call.failure = reason
            call.answered.set()
