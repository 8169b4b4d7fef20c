"""The HTTP of an environment server: routes, the key, the version, and how much a request may hold."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from agentrl.environment import Split
from agentrl.errors import AgentRLError, ConfigError
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.refusals import Full, OtherEnvironment, Refusal, TooLarge, Unauthorized
from agentrl.servers.http_guard import BodyTooLong, BodyTooSlow, denial
from agentrl.servers.http_server import health, read_body, version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from agentrl.rollout.pool import Timeouts
    from agentrl.servers.env_server.sessions import Sessions
    from agentrl.servers.env_server.splits import Splits

    Endpoint = Callable[[Request], Awaitable[Response]]

T = TypeVar("T")

MOST_DIGITS = 18
"""Of the number of a row."""
JSON = "application/json"

_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")


class EnvServer:
    """What the routes answer from.

    Args:
        spec: of the environment, as it was given.
        sessions: the episodes.
        splits: the rows.
        timeouts: deadlines of the pool, to be told to clients.
        key: that every request but /health must bring; empty for none.
        most_bytes: of a request's body.
    """

    def __init__(self, spec: str, sessions: Sessions, splits: Splits, timeouts: Timeouts, *, key: str, most_bytes: int) -> None:
        self._spec = spec
        self._sessions = sessions
        self._splits = splits
        self._timeouts = timeouts
        self._key = key
        self._most_bytes = most_bytes

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/health", health, methods=["GET"]),
                Route("/info", self._guarded(self._info), methods=["GET"]),
                Route("/tasks/{split}", self._guarded(self._length), methods=["GET"]),
                Route("/tasks/{split}/{start}", self._guarded(self._rows), methods=["GET"]),
                Route("/sessions/{session}", self._guarded(self._open), methods=["PUT"]),
                Route("/sessions/{session}", self._guarded(self._ask), methods=["POST"]),
                Route("/sessions/{session}", self._guarded(self._close), methods=["DELETE"]),
                Route("/sessions/{session}/sampled", self._guarded(self._sampled), methods=["POST"]),
            ]
        )

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for those who have the key and speak this version; what it refuses becomes a status and a sentence."""

        async def guarded(request: Request) -> Response:
            try:
                if denied := denial(request, self._key, protocol.KEY_VARIABLE):
                    raise Unauthorized(denied)
                _check_version(request)
                return await endpoint(request)
            except Refusal as refusal:
                response = _said(protocol.Error(error=str(refusal)), refusal.status)
                if isinstance(refusal, Full):
                    response.headers["retry-after"] = "1"
                return response
            except ClientDisconnect:
                return Response(status_code=400)  # which nobody reads
            except ConfigError as error:
                return _said(protocol.Error(error=str(error)), 422)
            except AgentRLError as error:
                return _said(protocol.Error(error=str(error)), 500)

        return guarded

    async def _info(self, request: Request) -> Response:
        sessions = self._sessions
        return _said(
            protocol.Info(
                spec=self._spec,
                agentrl=version(),
                plays=self._splits.plays,
                compares=self._splits.compares,
                call_s=self._timeouts.call_s,
                score_s=self._timeouts.score_s,
                idle_s=sessions.limits.idle_s,
                max_sessions=sessions.limits.max_sessions,
                sessions=sessions.load,
                waiting=sessions.waiting,
                opened=sessions.opened,
                idled=sessions.idled,
                failed=sessions.failed,
            )
        )

    async def _length(self, request: Request) -> Response:
        return _said(protocol.Length(length=await self._splits.length(_split(request))))

    async def _rows(self, request: Request) -> Response:
        count = request.query_params.get("count", "1")
        if not count.isascii() or not count.isdigit() or not 1 <= int(count[:6]) <= protocol.MOST_ROWS:
            raise Refusal(f"count is {count!r:.80}; allowed: 1 to {protocol.MOST_ROWS}")
        rows = await self._splits.fetch(_split(request), _start(request), int(count))
        return _said(protocol.Rows(rows=rows))

    async def _open(self, request: Request) -> Response:
        session, (opening, digest) = _session(request), await self._read(request, protocol.Opening)
        if opening.spec != self._spec:
            raise OtherEnvironment(f"this server serves {self._spec}, and the run began with {opening.spec:.200}; start it again")
        return _answered(session, 0, await self._sessions.open(session, opening.task, digest))

    async def _ask(self, request: Request) -> Response:
        session, (asked, digest) = _session(request), await self._read(request, protocol.Asked)
        return _answered(session, asked.number, await self._sessions.ask(session, asked.number, asked.request, digest))

    async def _sampled(self, request: Request) -> Response:
        session, (sampled, _) = _session(request), await self._read(request, protocol.Sampled)
        self._sessions.take(session, sampled)
        return _said(protocol.Taken(session=session, number=sampled.number))

    async def _close(self, request: Request) -> Response:
        self._sessions.close(_session(request))
        return Response(status_code=204)

    async def _read(self, request: Request, kind: type[T]) -> tuple[T, bytes]:
        """The body, and a digest of it. Raises `Refusal` for one that is too large, too slow, or no JSON of its kind."""
        try:
            body = await read_body(request, self._most_bytes)
        except BodyTooLong as error:
            raise TooLarge(str(error)) from None
        except BodyTooSlow as error:
            raise Refusal(str(error)) from None
        try:
            return protocol.decode(bytes(body), kind), hashlib.blake2b(body, digest_size=16).digest()
        except ValueError as error:
            raise Refusal(f"the request is no {kind.__name__}: {error}") from None


def _check_version(request: Request) -> None:
    spoken = request.headers.get(protocol.VERSION_HEADER, "none")
    if spoken != str(protocol.PROTOCOL):
        raise Refusal(
            f"the client speaks version {spoken:.20} of the protocol and this server version {protocol.PROTOCOL} (agentrl {version()}): "
            "install the same agentrl on both"
        )


def _split(request: Request) -> Split:
    split: Any = request.path_params["split"]
    if split not in get_args(Split):
        raise Refusal(f"the split is {split!r:.80}; allowed: {' and '.join(get_args(Split))}")
    found: Split = split
    return found


def _start(request: Request) -> int:
    start: str = request.path_params["start"]
    if not start.isascii() or not start.isdigit() or len(start) > MOST_DIGITS:
        raise Refusal(f"the first row is {start!r:.80}; allowed: whole numbers of at most {MOST_DIGITS} digits")
    return int(start)


def _session(request: Request) -> str:
    key: str = request.path_params["session"]
    if not _KEY.fullmatch(key):
        raise Refusal(f"the session is {key!r:.80}; allowed: 16 to 64 letters, digits, - and _")
    return key


def _answered(session: str, number: int, body: bytes | None) -> Response:
    if body is None:
        return _said(protocol.Said(session=session, number=number, answer=None), 202)
    return Response(body, media_type=JSON)


def _said(message: object, status: int = 200) -> Response:
    return Response(protocol.encode(message), status, media_type=JSON)
