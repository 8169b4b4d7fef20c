"""One session of an OpenEnv server: the WebSocket on which its environment lives, and dies.

A server makes an environment for each socket and destroys it with the socket, so an episode cannot outlive its connection. OpenEnv's own
client connects anew behind one's back, which puts the next step to an environment that was never reset; this one never does.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.servers.http_guard import is_loopback

MOST_MESSAGE_BYTES = 16 * 2**20
CONNECT_S = 10.0
CLOSE_S = 1.0
"""Longest wait for the other side to say goodbye."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Between attempts to get a slot of a server that is full or starting; each is twice the one before."""
PING_S = 20.0
"""Keeps tunnels open; only calls have deadlines."""


class ActionRefused(ValueError):
    """The action does not fit the server's action model; the model reads why."""


class OpenEnvSession:
    """A connected session.

    Args:
        url: of the server, `http://` or `https://`.
        timeout_s: of one reset or step.
        start_timeout_s: to get a slot and the first reset; a full server is asked again until then.
        headers: of the connection.
    """

    def __init__(self, url: str, *, timeout_s: float, start_timeout_s: float, headers: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + start_timeout_s
        self._headers = dict(headers)
        self._stack = contextlib.ExitStack()
        self._socket: Any = None
        self._over = ""

    def reset(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Connect, and reset the environment; gives `observation`, `reward` and `done`.

        Nothing is lost before the first reset, so a server that is full, or not there yet, is tried again until the deadline.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._connect()
                return self._asked("reset", arguments)
            except _NoSlot as error:
                self.close()
                if time.monotonic() + pause_s > self._deadline:
                    raise EnvironmentFailure(f"OpenEnv server {self.url}: no session in time: {error}") from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._over = ""

    def step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Take an action; gives `observation`, `reward` and `done`.

        Raises `ActionRefused` where the action does not fit the server's model, `EnvironmentFailure` for whatever ends the session: its
        failure, its silence, the loss of the connection.
        """
        if self._over:
            raise EnvironmentFailure(f"OpenEnv server {self.url}: the session is gone: {self._over}")
        try:
            return self._asked("step", action)
        except _NoSlot as error:
            raise self._lost(str(error)) from error

    def close(self) -> None:
        """Give the server its slot back. Safe to call again."""
        socket, self._socket = self._socket, None
        self._over = self._over or "it was closed"
        if socket is not None:
            with contextlib.suppress(Exception):  # whatever the other side does now
                socket.send(json.dumps({"type": "close"}))
        with contextlib.suppress(Exception):
            self._stack.close()

    def _connect(self) -> None:
        from websockets.exceptions import InvalidHandshake, InvalidURI
        from websockets.sync.client import connect

        target = urlsplit(self.url)
        scheme = "wss" if target.scheme == "https" else "ws"
        try:
            opening = connect(
                target._replace(scheme=scheme, path=f"{target.path}/ws").geturl(),
                open_timeout=min(CONNECT_S, max(0.1, self._deadline - time.monotonic())),
                close_timeout=CLOSE_S,
                ping_interval=PING_S,
                ping_timeout=None,
                max_size=MOST_MESSAGE_BYTES,
                additional_headers=self._headers,
                proxy=None if is_loopback(target.hostname or "") else True,
            )
            self._socket = self._stack.enter_context(opening)
        except InvalidURI as error:
            raise ConfigError(f"OpenEnv server {self.url!r} is no URL: {error}") from None
        except (OSError, InvalidHandshake) as error:
            raise _NoSlot(f"{type(error).__name__}: {error}") from error

    def _asked(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """One request and its own answer. The socket is dropped wherever the two might come apart."""
        from websockets.exceptions import ConnectionClosed, WebSocketException

        try:
            with contextlib.suppress(ConnectionClosed):  # a server that is full says so before it closes: that is still to be read
                self._socket.send(json.dumps({"type": kind, "data": dict(data)}))
            answer = json.loads(self._socket.recv(timeout=self._timeout_s))
        except TimeoutError as error:
            # the answer may still come, and would be taken for that of the next request
            raise self._lost(f"{kind} took longer than {self._timeout_s:g} s") from error
        except ConnectionClosed as error:
            raise _NoSlot(f"the connection was lost at {kind}: {error}") from error
        except (OSError, ValueError, WebSocketException) as error:
            raise self._lost(f"{kind}: {type(error).__name__}: {error}") from error
        return self._checked(kind, answer)

    def _checked(self, kind: str, answer: Any) -> dict[str, Any]:
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(data, dict):
            raise self._lost(f"{kind} was answered with {str(answer)[:200]!r}")
        if answer.get("type") == "error":
            code, said = data.get("code"), str(data.get("message"))
            if code == "CAPACITY_REACHED":
                raise _NoSlot(said)
            if code == "VALIDATION_ERROR" and kind == "step":
                raise ActionRefused(_faults(data.get("errors")) or said)
            raise self._lost(f"{kind} failed: {said} ({code})")
        if answer.get("type") != "observation" or not isinstance(data.get("observation"), dict):
            raise self._lost(f"{kind} was answered with {str(answer)[:200]!r}")
        return data

    def _lost(self, why: str) -> EnvironmentFailure:
        self._over = self._over or why
        self.close()
        return EnvironmentFailure(f"OpenEnv server {self.url}: {why}")


class _NoSlot(Exception):
    """The server has no session for us, or has it no more."""


def _faults(errors: Any) -> str:
    """Pydantic's list of faults in one line."""
    if not isinstance(errors, list):
        return ""
    rows = [error for error in errors if isinstance(error, dict)]
    return "; ".join(f"{'.'.join(map(str, row.get('loc') or ()))}: {row.get('msg')}" for row in rows)
