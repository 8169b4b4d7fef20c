"""A sandbox on another machine, behind the same interface. A call is repeated until it is answered or patience ends; it is done once."""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import is_loopback
from agentrl.servers.sandbox import protocol
from agentrl.servers.sandbox.limits import Limits, Outcome, SandboxFileError, SandboxUnavailable, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from agentrl.servers.sandbox.view import Packages

T = TypeVar("T")
PATIENCE_S = 60.0
"""From the first failure of a call until the sandbox counts as unavailable."""
FIRST_WAIT_S, MOST_WAIT_S = 0.25, 8.0
"""Before a repetition, doubled each time."""
SLACK_S = 30.0
"""Of an answer, beyond what the program itself may take."""


class RemoteSandbox:
    """A sandbox of a server; see `agentrl.servers.sandbox.limits.Sandbox`.

    Args:
        url: of the server.
        limits: of a program that is given none.
        packages: that Python programs can import.
        key: by default that in AGENTRL_SANDBOX_API_KEY.
        patience_s: how long a call is repeated.
        transport: of httpx, for tests.
        sleep: waits between repetitions.
    """

    def __init__(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        packages: Packages = (),
        key: str | None = None,
        patience_s: float = PATIENCE_S,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._limits, self._patience_s, self._sleep = url.rstrip("/"), limits or Limits(), patience_s, sleep
        key = os.environ.get(protocol.KEY_VARIABLE, "") if key is None else key
        headers = {"content-type": protocol.CONTENT_TYPE, **({"authorization": f"Bearer {key}"} if key else {})}
        proxied = not is_loopback(httpx.URL(url).host)  # none stands between a machine and itself
        self._http = httpx.Client(headers=headers, transport=transport, limits=httpx.Limits(keepalive_expiry=60.0), trust_env=proxied)
        try:
            wanted = protocol.Open(request=secrets.token_hex(16), limits=self._limits, packages=packages)
            self._id = self._call("/sandboxes", wanted, str, SLACK_S)
        except BaseException:
            self._http.close()
            raise

    @property
    def limits(self) -> Limits:
        """Those of a program that is given none."""
        return self._limits

    def run(self, command: Sequence[str], *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """Run a program to its end, or to the first limit that it breaks."""
        wall_s = (limits or self._limits).wall_s
        return self.ask(protocol.Run(request=secrets.token_hex(16), command=list(command), stdin=stdin, limits=limits), Outcome, wall_s)

    def read(self, path: str, *, most_bytes: int | None = None) -> bytes:
        """A file of the folder."""
        return self.ask(protocol.Read(request=secrets.token_hex(16), path=path, most_bytes=most_bytes), bytes)

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the folder whole."""
        self.ask(protocol.Write(request=secrets.token_hex(16), path=path, data=data), type(None))

    def listing(self, path: str = ".") -> list[str]:
        """Everything below a folder."""
        return self.ask(protocol.List(request=secrets.token_hex(16), path=path), list[str])

    def python(self) -> RemoteSession:
        """Start a Python interpreter that keeps its variables."""
        return RemoteSession(self, self.ask(protocol.Begin(request=secrets.token_hex(16), language="python"), int))

    def shell(self) -> RemoteSession:
        """Start a shell that keeps its folder and variables."""
        return RemoteSession(self, self.ask(protocol.Begin(request=secrets.token_hex(16), language="shell"), int))

    def close(self) -> None:
        """Have it closed; a server that does not hear of it closes it after its idle time. May be called again."""
        if not self._http.is_closed:
            try:
                self._http.delete(f"{self._url}/sandboxes/{self._id}", timeout=SLACK_S)
            except httpx.HTTPError:
                pass
            finally:
                self._http.close()

    def ask(self, ask: protocol.AnyAsk, kind: type[T], wall_s: float = 0.0) -> T:
        """Ask for something, and wait for the answer. Raises `SandboxUnavailable`, `SandboxFileError` and `ValueError`.

        Args:
            ask: what for.
            kind: of the answer.
            wall_s: how long the sandbox itself may take.
        """
        if self._http.is_closed:
            raise SandboxUnavailable("this sandbox was closed; open another one")
        return self._call(f"/sandboxes/{self._id}", ask, kind, wall_s + SLACK_S)

    def _call(self, path: str, body: Any, kind: type[T], timeout_s: float) -> T:
        answer = self._repeated(path, protocol.encoded(body), timeout_s)
        try:
            if answer.status_code == httpx.codes.OK:
                return msgspec.msgpack.decode(answer.content, type=kind)
            text = msgspec.msgpack.decode(answer.content, type=str)
        except msgspec.DecodeError as error:
            raise SandboxUnavailable(f"what answers at {self._url} is no sandbox server: status {answer.status_code}, {error}") from None
        if answer.status_code == protocol.FILE:
            raise SandboxFileError(text)
        if answer.status_code == protocol.SENSELESS:
            raise ValueError(text)
        if answer.status_code == protocol.FORBIDDEN:
            raise ConfigError(f"{self._url}: {text}")
        raise SandboxUnavailable(f"{self._url}: {text}")

    def _repeated(self, path: str, content: bytes, timeout_s: float) -> httpx.Response:
        """Send a request until it is answered; the server knows a repetition by the id in it."""
        wait_s, waited_s, tries = FIRST_WAIT_S, 0.0, 0
        timeout = httpx.Timeout(10.0, read=timeout_s, write=timeout_s)
        while True:
            tries += 1
            try:
                answer = self._http.post(self._url + path, content=content, timeout=timeout)
                if answer.status_code not in (502, 503, 504):
                    return answer
                problem = f"status {answer.status_code}"
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if waited_s + wait_s > self._patience_s:
                raise SandboxUnavailable(f"the sandbox server {self._url} did not answer {tries} times in a row, last with {problem}")
            self._sleep(wait_s)
            waited_s, wait_s = waited_s + wait_s, min(2 * wait_s, MOST_WAIT_S)

    def __enter__(self) -> RemoteSandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class RemoteSession:
    """A persistent interpreter of a server's sandbox; see `agentrl.servers.sandbox.limits.Session`."""

    def __init__(self, sandbox: RemoteSandbox, number: int) -> None:
        self._sandbox, self._number = sandbox, number

    def run(self, code: str, timeout_s: float | None = None) -> Turn:
        """Run a piece of code."""
        wall_s = self._sandbox.limits.wall_s if timeout_s is None else timeout_s
        ask = protocol.Say(request=secrets.token_hex(16), session=self._number, code=code, timeout_s=timeout_s)
        return self._sandbox.ask(ask, Turn, wall_s)

    def close(self) -> None:
        """End it with everything that it started."""
        self._sandbox.ask(protocol.End(request=secrets.token_hex(16), session=self._number), type(None))
