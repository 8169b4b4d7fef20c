"""Sandboxes by id for clients elsewhere: each is asked for one thing at a time, and closed when nobody asks for a while.

A request outlives the HTTP call that brought it, and its answer is kept for a repetition: a client whose connection broke asks again and
gets the answer of the first time.
"""

from __future__ import annotations

import functools
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import BodyTooLong, BodyTooSlow, denial
from agentrl.servers.http_server import health, read_body
from agentrl.servers.sandbox import protocol
from agentrl.servers.sandbox.limits import Limits, SandboxFileError, SandboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from agentrl.servers.sandbox.limits import Sandbox, Session
    from agentrl.servers.sandbox.view import Packages

T = TypeVar("T")
BODY_S = 240.0
"""Longest time for a request's body to arrive; it may hold four times what those of other servers do."""
MOST_ANSWERS = 4
"""Kept for repetition, a sandbox; a client repeats only its last."""
MOST_SESSIONS = 8
"""Of a sandbox at once."""
MOST_WAITING = 32
"""Counts of requests to one sandbox, and of their work, at once."""
MOST_LIMITS = Limits(
    cpu_s=3600, wall_s=3600, memory_mib=16_384, processes=1024, file_mib=1024, output_kib=16_384, open_files=4096, folder_mib=8192
)
"""What a client may ask for."""


@dataclass
class Reply:
    """An answer that is on its way or kept."""

    done: trio.Event = field(default_factory=trio.Event)
    status: int = 200
    body: bytes = b""

    def response(self) -> Response:
        """As HTTP."""
        return Response(self.body, self.status, media_type=protocol.CONTENT_TYPE)


@dataclass
class Held:
    """A sandbox that somebody uses."""

    id: str
    sandbox: Sandbox
    opened_by: str
    used: float
    sessions: dict[int, Session] = field(default_factory=dict)
    num_sessions: int = 0
    turn: trio.Lock = field(default_factory=trio.Lock)
    waiting: int = 0
    """Requests that are being answered, or wait for that."""
    replies: OrderedDict[str, Reply] = field(default_factory=OrderedDict)

    def perform(self, ask: protocol.AnyAsk) -> protocol.Answer:
        """Do what is asked for; blocks."""
        match ask:
            case protocol.Run():
                return self.sandbox.run(ask.command, stdin=ask.stdin, limits=ask.limits)
            case protocol.Read():
                return self.sandbox.read(ask.path, most_bytes=ask.most_bytes)
            case protocol.Write():
                self.sandbox.write(ask.path, ask.data)
            case protocol.List():
                return self.sandbox.listing(ask.path)
            case protocol.Begin():
                return self._begin(ask)
            case protocol.Say():
                if ask.session not in self.sessions:
                    raise ValueError(f"there is no session {ask.session}")
                return self.sessions[ask.session].run(ask.code, ask.timeout_s)
            case protocol.End():
                if session := self.sessions.pop(ask.session, None):
                    session.close()
        return None

    def _begin(self, ask: protocol.Begin) -> int:
        if len(self.sessions) >= MOST_SESSIONS:
            raise ValueError(f"the sandbox has {MOST_SESSIONS} sessions already; end one")
        self.num_sessions += 1
        self.sessions[self.num_sessions] = self.sandbox.python() if ask.language == "python" else self.sandbox.shell()
        return self.num_sessions


class Service:
    """The server's state.

    Args:
        nursery: in which requests are worked on; when it is cancelled, every sandbox is closed.
        opener: opens a sandbox; blocks.
        most_sandboxes: at once.
        idle_s: after so long without a request a sandbox is closed.
        key: that clients must bring; empty for none.
    """

    def __init__(
        self, nursery: trio.Nursery, opener: Callable[[Limits, Packages], Sandbox], *, most_sandboxes: int, idle_s: float, key: str = ""
    ) -> None:
        self._nursery, self._opener, self._most, self._idle_s, self._key = nursery, opener, most_sandboxes, idle_s, key
        self._threads = trio.CapacityLimiter(2 * most_sandboxes)
        self._held: dict[str, Held] = {}
        self._opening: dict[str, Reply] = {}

    def app(self) -> Starlette:
        """The server as an ASGI application."""
        return Starlette(
            routes=[
                Route("/health", health),
                Route("/sandboxes", self._guarded(self._open), methods=["POST"]),
                Route("/sandboxes/{id}", self._guarded(self._ask), methods=["POST"]),
                Route("/sandboxes/{id}", self._guarded(self._delete), methods=["DELETE"]),
            ]
        )

    async def close(self) -> None:
        """Close every sandbox; nothing else uses them any more."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for held in list(self._held.values()):
                    nursery.start_soon(self._drop, held)

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            if denied := denial(request, self._key, protocol.KEY_VARIABLE):
                return _refusal(protocol.FORBIDDEN, denied).response()
            # without a key, a page in a browser on this machine could ask too: it cannot send this type
            if request.headers.get("content-type") != protocol.CONTENT_TYPE:
                return _refusal(protocol.SENSELESS, f"the content type must be {protocol.CONTENT_TYPE}").response()
            try:
                return await handle(request)
            except _Refused as refused:
                return refused.reply.response()
            except ClientDisconnect:
                return Response(status_code=400)  # which nobody reads

        return checked

    async def _open(self, request: Request) -> Response:
        wanted = await _decoded(request, _OPEN)
        _check(wanted.limits)
        reply = self._opening.get(wanted.request)
        if reply is None:
            if len(self._opening) >= self._most:
                return _refusal(protocol.LATER, f"all {self._most} sandboxes of this server are in use").response()
            reply = self._opening[wanted.request] = Reply()
            self._nursery.start_soon(self._answer, reply, functools.partial(self._opener, wanted.limits, wanted.packages), wanted.request)
        await reply.done.wait()
        return reply.response()

    async def _ask(self, request: Request) -> Response:
        held = self._held.get(request.path_params["id"])
        if held is None:
            return _refusal(protocol.GONE, f"there is no such sandbox; one is closed after {self._idle_s:g} s without a request").response()
        held.waiting += 1
        try:
            if held.waiting > MOST_WAITING:
                return _refusal(protocol.LATER, f"{MOST_WAITING} requests wait for this sandbox already").response()
            ask = await _decoded(request, _ASK)
            if isinstance(ask, protocol.Run) and ask.limits is not None:
                _check(ask.limits)
            reply = held.replies.get(ask.request)
            if reply is None:
                reply = held.replies[ask.request] = Reply()
                self._nursery.start_soon(self._work, held, ask, reply)
            await reply.done.wait()
            return reply.response()
        finally:
            held.waiting -= 1
            held.used = trio.current_time()

    async def _delete(self, request: Request) -> Response:
        held = self._held.get(request.path_params["id"])
        if held is not None:
            await self._drop(held)
        return Response(protocol.encoded(None), media_type=protocol.CONTENT_TYPE)

    async def _work(self, held: Held, ask: protocol.AnyAsk, reply: Reply) -> None:
        held.waiting += 1
        try:
            async with held.turn:
                await self._answer(reply, functools.partial(held.perform, ask))
        finally:
            held.waiting -= 1
            held.used = trio.current_time()
        if reply.status == protocol.FAILED:
            held.replies.pop(ask.request, None)
        while len(held.replies) > MOST_ANSWERS and next(iter(held.replies.values())).done.is_set():
            held.replies.popitem(last=False)

    async def _answer(self, reply: Reply, work: Callable[[], protocol.Answer | Sandbox], opened_by: str | None = None) -> None:
        """Do what blocks in a thread, and put down how it went."""
        try:
            result = await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)
            reply.body = protocol.encoded(self._hold(result, opened_by) if opened_by is not None else result)  # type: ignore[arg-type]
        except SandboxFileError as error:
            reply.status, reply.body = protocol.FILE, protocol.encoded(str(error))
        except (ConfigError, ValueError) as error:
            reply.status, reply.body = protocol.SENSELESS, protocol.encoded(str(error))
        except SandboxUnavailable as error:
            reply.status, reply.body = protocol.FAILED, protocol.encoded(str(error))
        finally:
            if opened_by is not None and reply.status != 200:
                self._opening.pop(opened_by, None)
            reply.done.set()

    def _hold(self, sandbox: Sandbox, opened_by: str) -> str:
        held = Held(secrets.token_urlsafe(16), sandbox, opened_by, trio.current_time())
        self._held[held.id] = held
        self._nursery.start_soon(self._drop_when_idle, held)
        return held.id

    async def _drop_when_idle(self, held: Held) -> None:
        while held.id in self._held:
            if held.waiting:
                await trio.sleep(self._idle_s)
            elif trio.current_time() < held.used + self._idle_s:
                await trio.sleep_until(held.used + self._idle_s)
            else:
                await self._drop(held)

    async def _drop(self, held: Held) -> None:
        if self._held.pop(held.id, None) is None:
            return
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(held.sandbox.close)
        self._opening.pop(held.opened_by, None)


class _Refused(Exception):
    """A request that makes no sense, or did not arrive."""

    def __init__(self, text: str, status: int = protocol.SENSELESS) -> None:
        super().__init__(text)
        self.reply = _refusal(status, text)


_OPEN: msgspec.msgpack.Decoder[protocol.Open] = msgspec.msgpack.Decoder(protocol.Open)
_ASK: msgspec.msgpack.Decoder[protocol.AnyAsk] = msgspec.msgpack.Decoder(protocol.AnyAsk)


async def _decoded(request: Request, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        body = await read_body(request, protocol.MOST_BODY_BYTES, BODY_S)
    except BodyTooLong as error:
        raise _Refused(str(error)) from None
    except BodyTooSlow as error:
        raise _Refused(str(error), protocol.LATER) from None
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's own are values
        raise _Refused(f"the request cannot be read: {error}") from None


def _check(limits: Limits) -> None:
    for one in fields(limits):
        if getattr(limits, one.name) > (most := getattr(MOST_LIMITS, one.name)):
            raise _Refused(f"limit {one.name} is {getattr(limits, one.name)}; this server gives {most} at most")


def _refusal(status: int, text: str) -> Reply:
    return Reply(status=status, body=protocol.encoded(text))
