"""JSON over HTTP for rewards that ask a server: a deadline, retries with back-off, and a bound on requests in flight."""

from __future__ import annotations

import http
import json
import os
import random
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from agentrl.servers.http_guard import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be others a moment later."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
MOST_SAID_CHARS = 200


class RemoteFailure(Exception):
    """The server did not give an answer that could be used; the text says what it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for an answer, and how often to ask."""

    timeout_s: float = 25.0
    """Of all tries together; below a run's `rollout.score_timeout_s`, so that the failure can still be told."""
    attempts: int = 4
    concurrency: int = 8
    """Most requests in flight at once, in one process."""
    most_bytes: int = 16 << 20
    """Of an answer."""

    def __post_init__(self) -> None:
        if not (0 < self.timeout_s < float("inf") and self.attempts >= 1 and self.concurrency >= 1):
            raise ValueError(f"got timeout_s {self.timeout_s}, attempts {self.attempts}, concurrency {self.concurrency}; each is above 0")


class Remote:
    """One server. Its methods block, and may be called from any thread.

    Args:
        url: what paths are added to.
        key_env: environment variable with the API key, read at each request; nothing is sent where it is not set.
        patience: deadlines and bounds.
        sleep: waits between two tries.
        transport: of httpx, in place of the network.
    """

    def __init__(
        self,
        url: str,
        *,
        key_env: str,
        patience: Patience,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"got url {url!r}; it is an address such as http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/")
        self._key_env = key_env
        self._patience = patience
        self._sleep = sleep
        self._places = threading.BoundedSemaphore(patience.concurrency)
        # no proxy stands between a machine and itself
        self._client = httpx.Client(transport=transport, trust_env=not is_loopback(parts.hostname))
        self._jitter = random.Random()
        weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close connections; nothing can be asked afterwards."""
        self._client.close()

    def post(self, path: str, body: Any) -> Any:
        """Ask until there is an answer, as JSON; raises `RemoteFailure` when time or tries are spent, or the server refuses for good."""
        deadline = time.monotonic() + self._patience.timeout_s
        content = json.dumps(body, allow_nan=False).encode()
        if not self._places.acquire(timeout=self._patience.timeout_s):
            raise RemoteFailure(f"{self.url}: {self._patience.concurrency} requests were in flight for {self._patience.timeout_s:g} s")
        try:
            for attempt in range(1, self._patience.attempts + 1):
                again, answer = self._try(path, content, deadline)
                if again is None:
                    return answer
                wait = max(again, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * self._jitter.uniform(0.5, 1.0))
                if attempt == self._patience.attempts or time.monotonic() + wait >= deadline:
                    raise RemoteFailure(f"{answer}, after {attempt} tries")
                self._sleep(wait)
        finally:
            self._places.release()
        raise AssertionError("the last try returns or raises")

    def _try(self, path: str, content: bytes, deadline: float) -> tuple[float | None, Any]:
        """One request: None and the answer, or the least seconds to wait before the next one and what happened."""
        left = deadline - time.monotonic()
        if left <= 0:
            return 0.0, f"{self.url}: no answer within {self._patience.timeout_s:g} s"
        headers = {"content-type": "application/json"}
        if key := os.environ.get(self._key_env, ""):
            headers["authorization"] = f"Bearer {key}"
        try:
            with self._client.stream("POST", self.url + path, content=content, headers=headers, timeout=left) as response:
                answer = self._read(response, deadline)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return 0.0, f"{self.url}: {type(error).__name__}: {error}"
        if response.status_code == http.HTTPStatus.OK:
            try:
                return None, json.loads(answer)
            except (ValueError, RecursionError):
                return 0.0, f"{self.url} answered something that is no JSON: {_shown(answer)}"
        said = f"{self.url} answered HTTP {response.status_code}: {_shown(answer)}"
        if response.status_code not in RETRIED:
            raise RemoteFailure(said)
        return _retry_after(response), said

    def _read(self, response: httpx.Response, deadline: float) -> bytes:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > self._patience.most_bytes:
                raise RemoteFailure(f"{self.url}: the answer is longer than {self._patience.most_bytes:,} bytes")
            if time.monotonic() > deadline:
                raise RemoteFailure(f"{self.url}: the answer did not end within {self._patience.timeout_s:g} s")
        return bytes(content)


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say so in seconds."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() else 0.0


def _shown(content: bytes) -> str:
    text = " ".join(content[: 4 * MOST_SAID_CHARS].decode("utf-8", "replace").split())
    return text if len(text) <= MOST_SAID_CHARS else text[: MOST_SAID_CHARS - 3] + "..."
