"""A server in front of a real vLLM server that passes everything on, and spoils chosen answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATE = "/inference/v1/generate"


class Fault:
    """What goes wrong, and how often.

    Args:
        name: for the table.
        path: route whose calls it meets.
        times: calls that it meets; after them everything is as before.
        before: called with each such request before it is passed on; a status that it returns is answered instead.
        change: the answer's JSON value -> the bytes that are answered instead.
        after: called after the server has answered, before the answer is passed back.
        skip: calls that go by first.
    """

    def __init__(
        self,
        name: str,
        path: str = GENERATE,
        *,
        times: int = 1,
        before: Callable[[], int | None] = lambda: None,
        change: Callable[[Any], bytes] | None = None,
        after: Callable[[], None] = lambda: None,
        skip: int = 0,
    ) -> None:
        self.name, self.path, self.before, self.change, self.after = name, path, before, change, after
        self._left, self._skip = times, skip
        self._lock = threading.Lock()
        self.met = 0

    def meets(self, path: str) -> bool:
        """Whether this call goes wrong."""
        with self._lock:
            if path != self.path or not self._left:
                return False
            if self._skip:
                self._skip -= 1
                return False
            self._left -= 1
            self.met += 1
            return True


class FaultProxy:
    """Listens at `url`; a context manager."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.fault = Fault("none", times=0)
        self.http = httpx.Client(timeout=600, limits=httpx.Limits(max_connections=None), trust_env=False)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass("GET")

            def do_POST(self) -> None:
                self._pass("POST")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def _pass(self, method: str) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = proxy.answer(method, self.path, body)
                if answer is None:  # the server behind is gone: so is this connection
                    self.close_connection = True
                    return
                status, content = answer
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                """A client that left is no error here."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.http.close()

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes] | None:
        """Status and content for one request; None where nobody answers."""
        fault = self.fault
        spoilt = fault.meets(target.partition("?")[0])
        status = fault.before() if spoilt else None
        if status is not None:
            return status, b"spoilt"
        try:
            reply = self.http.request(method, self.backend + target, content=body, headers={"Content-Type": "application/json"})
        except httpx.HTTPError:
            return None
        if spoilt:
            fault.after()
            if fault.change is not None:
                return reply.status_code, fault.change(json.loads(reply.content))
        return reply.status_code, reply.content
