"""One live session of an environment server, as the HTTP calls that come for it see it."""

from __future__ import annotations

import trio

from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.refusals import OutOfTurn
from agentrl.servers.env_server.relay import Relay


class Exchange:
    """A numbered request and, once there is one, its answer."""

    __slots__ = ("answer", "digest", "done", "number")

    def __init__(self, number: int, digest: bytes) -> None:
        self.number = number
        self.digest = digest
        """Of the request as it was sent."""
        self.done = trio.Event()
        self.answer: bytes | None = None
        """The whole body; None where the session ended before there was one."""

    def same(self, digest: bytes) -> Exchange:
        """This one, asked for again. Raises `OutOfTurn` where it is another request under the same number."""
        if digest != self.digest:
            raise OutOfTurn(f"request {self.number} was sent before with other contents")
        return self


class Session:
    """A live session."""

    def __init__(self, key: str, digest: bytes, idle_s: float) -> None:
        self.key = key
        self.newest = Exchange(0, digest)
        self.scope = trio.CancelScope()
        """Around all that happens in it; cancelled when it is closed, and by its deadline when nobody asks."""
        self.over = ""
        """Why it ended."""
        self.relay = Relay()
        self._idle_s = idle_s
        self._send, self._receive = trio.open_memory_channel[protocol.Request](1)
        self.touch()

    def touch(self) -> None:
        """Somebody is there."""
        self.scope.deadline = trio.current_time() + self._idle_s

    def admit(self, number: int, request: protocol.Request | None, digest: bytes) -> Exchange:
        """The exchange of a request: the newest one again, or a new one. Raises `OutOfTurn`."""
        newest = self.newest
        if number == newest.number:
            return newest.same(digest)
        if request is None or number != newest.number + 1 or not newest.done.is_set():
            state = "has been answered" if newest.done.is_set() else "is still being answered"
            raise OutOfTurn(f"request {number} of session {self.key} came out of turn: the newest is {newest.number}, which {state}")
        self.newest = Exchange(number, digest)
        self._send.send_nowait(request)
        return self.newest

    async def next_request(self) -> protocol.Request:
        """What the client asks for next."""
        return await self._receive.receive()

    def say(self, answer: protocol.Reply) -> None:
        """Answer the newest request."""
        self.touch()
        newest = self.newest
        try:
            newest.answer = protocol.encode(protocol.Said(session=self.key, number=newest.number, answer=answer))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            failed = protocol.Failed(reason=f"what the environment gave is no JSON: {error}")
            newest.answer = protocol.encode(protocol.Said(session=self.key, number=newest.number, answer=failed))
        newest.done.set()
