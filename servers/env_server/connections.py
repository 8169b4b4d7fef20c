"""HTTP to one server for many threads: a stack of idle connections, and bounds on what an answer may be.

A request takes the connection that was used last, whatever their number, so that hundreds of episodes at once neither open one a call nor
look through a pool for theirs.
"""

from __future__ import annotations

import http.client
import re
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONNECT_S = 5.0
IDLE_S = 60.0
"""An idle connection is not used for longer; the server keeps its own for twice that."""
MOST_BYTES = 64 << 20
"""Of one answer."""
MOST_RETRY_S = 60.0
"""A server that says to come again later than that is asked earlier."""
CHUNK = 1 << 16


class ConnectionFault(Exception):
    """No connection, a lost one, or what came over it was no HTTP, too long or too late; the request may have been carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """A server's whole answer."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Connections:
    """The connections to one server; used by any number of threads at once.

    Args:
        url: `http://` or `https://`, host and port, and the path that others are below.
        headers: sent with every request.
        most_bytes: of one answer.
        clock: in seconds.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host, self._port = parts.hostname or "", parts.port
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        self._headers = dict(headers)
        self._most_bytes = most_bytes
        self._clock = clock
        self._idle: deque[tuple[float, http.client.HTTPConnection]] = deque()
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: bytes | None, timeout_s: float) -> HttpAnswer:
        """Send one request and wait for the whole answer, of whatever status. Raises `ConnectionFault`.

        Args:
            method: of HTTP.
            path: below the server's own.
            body: JSON.
            timeout_s: for all of it.
        """
        deadline = self._clock() + timeout_s
        while True:
            connection = self._pop()
            kept = connection is not None
            connection = connection or self._new()
            try:
                return self._exchange(connection, method, self._path + path, body, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                # an idle connection that the server has closed meanwhile says nothing about the server
                if not (kept and isinstance(error, ConnectionError)):
                    raise ConnectionFault(_words(error, timeout_s)) from error
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for _, connection in idle:
            connection.close()

    def _exchange(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, deadline: float) -> HttpAnswer:
        self._limit(connection, deadline)
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        connection.request(method, path, body, headers)
        self._limit(connection, deadline)
        answer = connection.getresponse()
        data = bytearray()
        while chunk := answer.read1(CHUNK):
            data += chunk
            if len(data) > self._most_bytes:
                raise http.client.HTTPException(f"the answer is longer than {self._most_bytes} bytes")
            self._limit(connection, deadline)
        if answer.length:
            raise http.client.HTTPException(f"the answer ended {answer.length} bytes too early")
        answer.close()  # or the connection would take it for unread
        retry = _seconds(answer.headers.get("retry-after"))
        if answer.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append((self._clock(), connection))
        return HttpAnswer(status=answer.status, body=bytes(data), retry_after_s=retry)

    def _limit(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        if connection.sock is None:
            connection.timeout = min(left, CONNECT_S)
        else:
            connection.sock.settimeout(left)

    def _new(self) -> http.client.HTTPConnection:
        if self._context is not None:
            return http.client.HTTPSConnection(self._host, self._port, context=self._context)
        return http.client.HTTPConnection(self._host, self._port)

    def _pop(self) -> http.client.HTTPConnection | None:
        """The idle connection that was used last, unless it is too old. The oldest ones are closed, one a call."""
        expired = self._clock() - IDLE_S
        with self._lock:
            oldest = self._idle.popleft()[1] if self._idle and self._idle[0][0] < expired else None
            newest = self._idle.pop()[1] if self._idle and self._idle[-1][0] >= expired else None
        if oldest is not None:
            oldest.close()
        return newest


def _words(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    return str(error) or type(error).__name__


def _seconds(text: str | None) -> float | None:
    return min(float(text), MOST_RETRY_S) if text and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else None
