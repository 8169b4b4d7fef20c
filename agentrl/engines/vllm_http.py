"""HTTP to one server, as lean as hundreds of concurrent calls need: h11 on trio's streams, and a stack of idle connections.

httpx's pool looks at every connection for every request: with 256 calls in flight that alone took half a core. Here a request takes the
connection that was used last, whatever their number, and two writes and reads.
"""

from __future__ import annotations

import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING
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


class HttpError(Exception):
    """The connection could not be made or was lost, or what came over it was no HTTP; the message names the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A server's whole answer."""

    status: int
    body: bytes


@dataclass(slots=True, kw_only=True)
class _Connection:
    stream: trio.abc.Stream
    state: h11.Connection
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
        self._headers = [("host", parts.netloc), *headers.items()]
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
        return _Connection(stream=stream, state=h11.Connection(h11.CLIENT))

    async def _exchange(self, connection: _Connection, method: str, target: str, body: bytes) -> Reply:
        connection.silent = True
        kept = False
        try:
            headers = self._headers
            if body:
                headers = [*headers, ("content-type", "application/json"), ("content-length", str(len(body)))]
            head = connection.state.send(h11.Request(method=method, target=target, headers=headers)) or b""
            payload = (connection.state.send(h11.Data(data=body)) or b"") if body else b""
            connection.state.send(h11.EndOfMessage())
            await connection.stream.send_all(head + payload)
            reply = await self._receive(connection)
            if connection.state.our_state is h11.DONE and connection.state.their_state is h11.DONE and not self._closed:
                connection.state.start_next_cycle()
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

    async def _receive(self, connection: _Connection) -> Reply:
        status, chunks, size = 0, [], 0
        while True:
            event = connection.state.next_event()
            if event is h11.NEED_DATA:
                data = await connection.stream.receive_some(CHUNK)
                connection.silent = connection.silent and not data
                if not data and not status:
                    raise HttpError(f"{self.url} closed the connection without an answer")
                connection.state.receive_data(bytes(data))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                chunks.append(bytes(event.data))
                size += len(chunks[-1])
                if size > MOST_BYTES:
                    raise HttpError(f"{self.url} sent more than {MOST_BYTES} bytes in one answer")
            elif isinstance(event, h11.EndOfMessage):
                return Reply(status=status, body=b"".join(chunks))
