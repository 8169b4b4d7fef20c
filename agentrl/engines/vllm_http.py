"""HTTP to one server, as lean as hundreds of concurrent calls need: trio's streams, and a stack of idle connections.

httpx's pool looks at every connection for every request: with 256 calls in flight that alone took half a core. Here a request takes the
connection that was used last, whatever their number. An answer of the usual form, which says its length, is read without ceremony; h11
reads any other.
"""

from __future__ import annotations

import re
import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import h11
import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

IDLE_S = 4.0
"""An idle connection is not used for longer; vLLM closes its own after 5 s."""
CONNECT_S = 10.0
CHUNK = 1 << 16
MOST_BYTES = 1 << 28
"""Of one answer; a server that sends more is broken."""
FIRST_BACKOFF_S = 0.1
"""Before a request is tried again; it doubles."""
MOST_BACKOFF_S = 5.0
FINAL = {400, 413, 422}
"""Statuses that are about the request. The other 400s say that the server is not what it should be: no such model or route, another key."""
SHOWN_FAILURES = 3
"""Of a request that was given up, in its error."""

_USUAL = re.compile(rb"HTTP/1\.1 ([2-5](?!04)\d\d)[^\r\n]*((?:\r\n[!-9;-~]+:[^\r\n]*)*)\r\n\r\n")
"""The head of an answer that has a body: its status and its headers."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r\n|\Z)")


class HttpError(Exception):
    """The connection could not be made or was lost, or what came over it was no HTTP; the message names the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A server's whole answer."""

    status: int
    body: bytes


class Connection(Protocol):
    """What is needed of a server's connections; `HttpServer` is one."""

    async def request(self, method: str, target: str, body: bytes = b"") -> Reply:
        """Send one request and wait for the whole answer. Raises `HttpError`."""
        ...

    async def aclose(self) -> None:
        """Close what is open."""
        ...


@dataclass(slots=True, kw_only=True)
class _Connection:
    stream: trio.abc.Stream
    used_at: float = 0.0
    silent: bool = True
    """Nothing has come yet for the request that it carries."""


class HttpServer:
    """The connections to one server; any number of calls at once. Cancelling one closes its connection, and vLLM aborts the request."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"host": parts.netloc, **headers}.items())
        self._context = ssl.create_default_context() if self._tls else None
        self._idle: deque[_Connection] = deque()
        self._closed = False

    async def request(self, method: str, target: str, body: bytes = b"") -> Reply:
        """Send one request and wait for the whole answer, of whatever status. Raises `HttpError`."""
        connection = await self._pop()
        if connection is not None:
            try:
                return await self._exchange(connection, method, target, body)
            except HttpError:
                if not connection.silent:
                    raise
                # The server had closed it while it was idle: that says nothing about the server.
        return await self._exchange(await self._connect(), method, target, body)

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when their calls end."""
        self._closed = True
        with trio.CancelScope(shield=True):  # nothing here blocks, and each is to be closed
            while self._idle:
                await trio.aclose_forcefully(self._idle.pop().stream)

    async def _pop(self) -> _Connection | None:
        """The idle connection that was used last, unless it is too old. The oldest ones are closed, one a call."""
        expired = trio.current_time() - IDLE_S
        if self._idle and self._idle[0].used_at < expired:
            await trio.aclose_forcefully(self._idle.popleft().stream)
        if self._idle and self._idle[-1].used_at >= expired:
            return self._idle.pop()
        return None

    async def _connect(self) -> _Connection:
        stream: trio.abc.Stream
        try:
            with trio.fail_after(CONNECT_S):
                if self._tls:
                    stream = await trio.open_ssl_over_tcp_stream(self._host, self._port, https_compatible=True, ssl_context=self._context)
                else:
                    stream = await trio.open_tcp_stream(self._host, self._port)
        except trio.TooSlowError:
            raise HttpError(f"{self.url} did not accept a connection within {CONNECT_S:g} s") from None
        except OSError as error:
            raise HttpError(f"{self.url} accepts no connection: {error}") from error
        return _Connection(stream=stream)

    async def _exchange(self, connection: _Connection, method: str, target: str, body: bytes) -> Reply:
        connection.silent = True
        kept = False
        try:
            kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
            await connection.stream.send_all(f"{method} {target} HTTP/1.1\r\n{self._head}{kind}\r\n".encode() + body)
            reply, reusable = await self._receive(connection, method)
            if reusable and not self._closed:
                connection.used_at = trio.current_time()
                self._idle.append(connection)
                kept = True
            return reply
        except h11.RemoteProtocolError as error:
            raise HttpError(f"{self.url} does not speak HTTP: {error}") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise HttpError(f"the connection to {self.url} was lost: {str(error) or type(error).__name__}") from error
        finally:
            if not kept:
                await trio.aclose_forcefully(connection.stream)

    async def _receive(self, connection: _Connection, method: str) -> tuple[Reply, bool]:
        """Read an answer; returns it, and whether the connection may carry another request."""
        data = bytes(await connection.stream.receive_some(CHUNK))
        if not data:
            raise HttpError(f"{self.url} closed the connection without an answer")
        connection.silent = False
        usual = _USUAL.match(data)
        if usual is None or (length := _length_of(usual[2])) is None:
            return await self._receive_any(connection, method, data)
        chunks = [data[usual.end() :]]
        missing = length - len(chunks[0])
        while missing > 0:
            chunks.append(bytes(await connection.stream.receive_some(CHUNK)))
            if not chunks[-1]:
                raise HttpError(f"{self.url} closed the connection {missing} bytes before the end of an answer of {length}")
            missing -= len(chunks[-1])
        # What comes after the answer would be taken for the next one.
        return Reply(status=int(usual[1]), body=b"".join(chunks)[:length]), missing == 0

    async def _receive_any(self, connection: _Connection, method: str, data: bytes) -> tuple[Reply, bool]:
        """Read an answer of any form that HTTP allows, of which some has come."""
        state = h11.Connection(h11.CLIENT)
        state.send(h11.Request(method=method, target="/", headers=[("host", "server")]))
        state.send(h11.EndOfMessage())
        state.receive_data(data)
        status, chunks, size = 0, [], 0
        while True:
            event = state.next_event()
            if event is h11.NEED_DATA:
                data = bytes(await connection.stream.receive_some(CHUNK))
                if not data and not status:
                    raise HttpError(f"{self.url} closed the connection without an answer")
                state.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                chunks.append(bytes(event.data))
                size += len(chunks[-1])
                if size > MOST_BYTES:
                    raise HttpError(f"{self.url} sent more than {MOST_BYTES} bytes in one answer")
            elif isinstance(event, h11.EndOfMessage):
                done = state.our_state is h11.DONE and state.their_state is h11.DONE and not state.trailing_data[0]
                return Reply(status=status, body=b"".join(chunks)), done


def _length_of(headers: bytes) -> int | None:
    """The length that an answer's headers declare; None where they say anything else of its form."""
    lines = headers.lower()
    lengths = _LENGTH.findall(lines)
    if len(lengths) != 1 or b"\r\ntransfer-encoding:" in lines or b"\r\nconnection:" in lines or lines.count(b"content-length") != 1:
        return None
    length = int(lengths[0])
    return length if length <= MOST_BYTES else None
