"""A run's side of an environment server: numbered requests, repeated until they are answered, and nothing taken on trust."""

from __future__ import annotations

import math
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import SCHEMA_VERSION
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.connections import ConnectionFault, Connections

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentrl.environment import Split
    from agentrl.records import Task
    from agentrl.servers.env_server.connections import HttpAnswer

T = TypeVar("T")

POLL_S = 10.0
"""Longest wait for one HTTP answer: twice what the server takes before it says that there is none yet."""
PATIENCE_S = 15.0
"""How long a server may be away, full or broken, from the first sign of it, before its episodes are given up; with the wait for that
sign below a run's own deadline."""
LATE_S = 10.0
"""How much longer than by its own deadline a server may take."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 3.0
"""Between two tries."""
CLOSE_S = 2.0
"""For closing a session, once: the worker that closes an environment has little time for it, and the server closes it anyway."""
_AGAIN = frozenset({429, 500, 502, 503, 504})


class EnvClient:
    """An environment server; used by any number of threads at once.

    Args:
        connections: to the server, with the headers of `headers`.
        patience_s: how long it may be away, full or broken before an episode is given up.
        sleep: waits between two tries.
        clock: in seconds.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        patience_s: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = connections.url
        self._connections = connections
        self._patience_s = patience_s
        self._sleep = sleep
        self._clock = clock
        self._info: protocol.Info | None = None

    def info(self) -> protocol.Info:
        """What the server serves, asked once. Raises `EnvironmentFailure`, `ConfigError` where the two sides do not fit together."""
        if self._info is None:
            info = self._ask("GET", "/info", None, protocol.Info, PATIENCE_S)
            if (info.protocol, info.schema_version) != (protocol.PROTOCOL, SCHEMA_VERSION):
                theirs = f"version {info.protocol} of the protocol and {info.schema_version} of the records (agentrl {info.agentrl})"
                raise ConfigError(
                    f"the environment server {self.url} speaks {theirs}, and this agentrl {protocol.PROTOCOL} and {SCHEMA_VERSION}: "
                    "install the same agentrl on both"
                )
            self._info = info
        return self._info

    def length(self, split: Split) -> int:
        """How many rows a split has. Raises `ConfigError` where the server's environment does not give it."""
        # the server may still be loading a split that its process has died of
        length = self._ask("GET", f"/tasks/{split}", None, protocol.Length, 120.0).length
        if length < 0:
            raise EnvironmentFailure(self._lies(f"a split of {length} rows"))
        return length

    def rows(self, split: Split, start: int, count: int) -> list[dict[str, Any]]:
        """Rows from `start` on, exactly so many."""
        rows = self._ask("GET", f"/tasks/{split}/{start}?count={count}", None, protocol.Rows, PATIENCE_S).rows
        if len(rows) != count:
            raise EnvironmentFailure(self._lies(f"{len(rows)} rows where {count} were asked for"))
        return rows

    def open(self, session: str, task: Task) -> protocol.Opened:
        """Start an episode under an id of the caller's choice. Raises `EnvironmentFailure`."""
        info = self.info()
        opening = protocol.Opening(spec=info.spec, task=task)
        return self._said("PUT", session, 0, opening, protocol.Opened, info.call_s)

    def ask(self, session: str, number: int, request: protocol.Request, kind: type[T], deadline_s: float) -> T:
        """Have the request with this number done; raises `EnvironmentFailure` for every other outcome.

        Args:
            session: of the episode.
            number: one more than that of the request before.
            request: what is asked for.
            kind: what must come back.
            deadline_s: the server's own for this.
        """
        return self._said("POST", session, number, protocol.Asked(number=number, request=request), kind, deadline_s)

    def sampled(self, session: str, sampled: protocol.Sampled) -> None:
        """Give an assistant turn to an environment that plays its episode itself. Raises `EnvironmentFailure`."""
        taken = self._ask("POST", f"/sessions/{session}/sampled", _encoded(sampled), protocol.Taken, PATIENCE_S)
        if (taken.session, taken.number) != (session, sampled.number):
            raise EnvironmentFailure(self._lies(f"that it took turn {taken.number} of {taken.session}, not {sampled.number} of {session}"))

    def close(self, session: str) -> None:
        """End an episode; a server that does not hear of it ends it for idleness."""
        with suppress(ConnectionFault):
            self._connections.request("DELETE", f"/sessions/{session}", None, CLOSE_S)

    def _said(self, method: str, session: str, number: int, message: object, kind: type[T], deadline_s: float) -> T:
        body = _encoded(message)
        until = self._clock() + deadline_s + LATE_S
        while True:
            said = self._ask(method, f"/sessions/{session}", body, protocol.Said, deadline_s + LATE_S)
            if (said.session, said.number) != (session, number):
                raise EnvironmentFailure(self._lies(f"an answer to request {said.number} of {said.session}, not {number} of {session}"))
            if isinstance(said.answer, protocol.Failed):
                failure = EnvironmentFailure(said.answer.reason)
                failure.add_note(said.answer.traceback)
                raise failure
            if isinstance(said.answer, kind):
                return said.answer
            if said.answer is not None:
                raise EnvironmentFailure(self._lies(f"{type(said.answer).__name__} where {kind.__name__} was expected"))
            if self._clock() > until:
                raise EnvironmentFailure(f"the environment server {self.url} took longer than its own deadline of {deadline_s:g} s")

    def _ask(self, method: str, path: str, body: bytes | None, kind: type[T], most_s: float) -> T:
        """One answer of a kind, from as many tries as it takes; every request may be repeated, as the server does none twice."""
        wait, gone_at = FIRST_WAIT_S, 0.0
        while True:
            asked_at = self._clock()
            try:
                answer = self._connections.request(method, path, body, min(POLL_S, most_s))
            except ConnectionFault as fault:
                trouble, least = str(fault), 0.0
            else:
                if answer.status in (200, 202):
                    found = self._read(answer, kind)
                    if answer.status == 202 and self._clock() - asked_at < FIRST_WAIT_S:
                        self._sleep(FIRST_WAIT_S)  # the server should have waited: do not hammer it
                    return found
                if answer.status not in _AGAIN:
                    raise self._refused(answer)
                trouble, least = f"status {answer.status}, {_error(answer.body)}", answer.retry_after_s or 0.0
            pause = max(least, wait * (0.5 + random.random() / 2))
            gone_at = gone_at or self._clock() + min(self._patience_s, most_s)
            if self._clock() + pause > gone_at:
                raise ServerGone(f"the environment server {self.url} does not answer: {trouble}")
            self._sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _read(self, answer: HttpAnswer, kind: type[T]) -> T:
        try:
            return protocol.decode(answer.body, kind)
        except ValueError as error:
            raise EnvironmentFailure(self._lies(f"something that is no {kind.__name__} ({error}): {_shown(answer.body)}")) from None

    def _refused(self, answer: HttpAnswer) -> Exception:
        said = f"the environment server {self.url} refuses, status {answer.status}: {_error(answer.body)}"
        return ConfigError(said) if answer.status in (401, 422) else EnvironmentFailure(said)

    def _lies(self, what: str) -> str:
        return f"the environment server {self.url} is broken, or no agentrl environment server: it gave {what}"


class ServerGone(EnvironmentFailure):
    """The server cannot be reached, is full, or breaks on the request."""


def headers(key: str) -> dict[str, str]:
    """What every request carries."""
    return {protocol.VERSION_HEADER: str(protocol.PROTOCOL), "accept-encoding": "identity"} | (
        {"authorization": f"Bearer {key}"} if key else {}
    )


def finite(what: str, value: float) -> float:
    """A number that a server gave. Raises `EnvironmentFailure` for NaN and infinities."""
    if not math.isfinite(value):
        raise EnvironmentFailure(f"the environment server gave {value} as {what}; allowed: a finite number")
    return value


def _encoded(message: object) -> bytes:
    try:
        return protocol.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EnvironmentFailure(f"a {type(message).__name__} cannot be sent to the environment server: {error}") from None


def _error(body: bytes) -> str:
    try:
        return protocol.decode(body, protocol.Error).error[:2000]
    except ValueError:
        return _shown(body)


def _shown(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace") or "(nothing)"
