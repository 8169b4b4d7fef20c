"""The body of `agentrl serve-reward`: a reward model over HTTP.

`POST /score` takes `{"prompts": [...], "completions": [...]}` (texts, or lists of messages), `{"prompts": [...], "steps": [[...], ...]}`
or `{"messages": [[...], ...]}` and answers `{"scores": [...], "errors": [...], "steps": [[...], ...]}`: null and a reason for a row that
cannot be scored. Rows of requests that arrive within a few milliseconds are scored together.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentrl.servers.http_guard import BodyTooLong, BodyTooSlow, checked_key, denial
from agentrl.servers.http_server import health, listen, listening, read_body, run_until_signalled, version
from agentrl.servers.reward_rows import RewardOptions, RewardRow, RowScore, rows_of_request

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from agentrl.servers.reward_scorer import RewardScorer

KEY_ENV = "AGENTRL_REWARD_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How much a reward server takes on."""

    gather_s: float = 0.003
    """How long the first row of a batch waits for others."""
    rows_at_once: int = 512
    """Most rows that are scored before new ones are looked at."""
    rows_a_request: int = 1024
    rows_waiting: int = 8192
    """Beyond this requests are told to come back (503)."""
    body_mib: int = 32
    """Of one request."""
    answer_s: float = 300.0
    """Longest wait of a request for its scores; then it gets none (504)."""


class Busy(Exception):
    """Too many rows wait."""


class _Job:
    """A row that waits for its score."""

    __slots__ = ("done", "row", "score")

    def __init__(self, row: RewardRow) -> None:
        self.row = row
        self.score = RowScore.failed("the server ended")
        self.done = trio.Event()


class Gatherer:
    """Scores rows of several requests together.

    Args:
        score: blocks; runs in a thread, one call at a time.
        limits: how many rows.
    """

    def __init__(self, score: Callable[[Sequence[RewardRow]], list[RowScore]], limits: ServerLimits) -> None:
        self._score = score
        self._limits = limits
        self._jobs: list[_Job] = []
        self._some_wait = trio.Event()
        self.rows = self.calls = 0
        """Rows scored, and calls of the model that it took."""

    @property
    def waiting(self) -> int:
        """Rows that are not being scored yet."""
        return len(self._jobs)

    async def score(self, rows: Sequence[RewardRow]) -> list[RowScore]:
        """The scores of rows, in their order; raises `Busy` where too many wait already."""
        if len(self._jobs) + len(rows) > self._limits.rows_waiting:
            raise Busy(f"{len(self._jobs)} rows are waiting; come back in a moment")
        jobs = [_Job(row) for row in rows]
        self._jobs += jobs
        self._some_wait.set()
        try:
            for job in jobs:
                await job.done.wait()
        finally:
            unwanted = set(jobs)
            if not all(job.done.is_set() for job in jobs):  # cancelled: nobody waits for the rest
                self._jobs = [job for job in self._jobs if job not in unwanted]
        return [job.score for job in jobs]

    async def run(self) -> None:
        """Take what waits, a few milliseconds after its first row, score it, and begin again; waits while nothing does."""
        while True:
            await self._some_wait.wait()
            if len(self._jobs) < self._limits.rows_at_once:
                await trio.sleep(self._limits.gather_s)
            taken, self._jobs = self._jobs[: self._limits.rows_at_once], self._jobs[self._limits.rows_at_once :]
            if not self._jobs:
                self._some_wait = trio.Event()
            try:
                scores = await trio.to_thread.run_sync(self._score, [job.row for job in taken]) if taken else []
            except Exception as error:  # the boundary to the model's own code: the server lives on
                logging.getLogger(__name__).exception("the reward model failed")
                scores = [RowScore.failed(f"the reward model failed: {type(error).__name__}: {error}")] * len(taken)
            self.rows += len(taken)
            self.calls += bool(taken)
            for job, score in zip(taken, scores, strict=True):
                job.score = score
                job.done.set()


class RewardServer:
    """What the routes answer from.

    Args:
        gatherer: scores.
        info: what /info says about the model.
        key: that every request but /health must bring; empty for none.
        limits: of a request.
    """

    def __init__(self, gatherer: Gatherer, info: dict[str, Any], *, key: str, limits: ServerLimits) -> None:
        self._gatherer = gatherer
        self._info = info
        self._key = key
        self._limits = limits

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/health", health, methods=["GET"]),
                Route("/info", self._told, methods=["GET"]),
                Route("/score", self._scored, methods=["POST"]),
            ]
        )

    async def _told(self, request: Request) -> Response:
        if denied := denial(request, self._key, KEY_ENV):
            return _error(401, denied)
        counts = {"rows": self._gatherer.rows, "calls": self._gatherer.calls, "waiting": self._gatherer.waiting}
        return JSONResponse({**self._info, **counts})

    async def _scored(self, request: Request) -> Response:
        if denied := denial(request, self._key, KEY_ENV):
            return _error(401, denied)
        try:
            body = await read_body(request, self._limits.body_mib << 20)
            rows = rows_of_request(json.loads(body), self._limits.rows_a_request)
            scores = None
            with trio.move_on_after(self._limits.answer_s):
                scores = await self._gatherer.score(rows)
        except BodyTooLong:
            return _error(413, f"the body is longer than {self._limits.body_mib} MiB; send fewer rows at once")
        except BodyTooSlow as error:
            return _error(408, str(error))
        except Busy as busy:
            return JSONResponse({"error": str(busy)}, 503, headers={"retry-after": "1"})
        except (ValueError, RecursionError) as error:  # no JSON, too
            return _error(422, str(error))
        except ClientDisconnect:
            return Response(status_code=499)
        if scores is None:
            return _error(504, f"the rows were not scored within {self._limits.answer_s:g} s")
        answer: dict[str, Any] = {"scores": [score.value for score in scores], "errors": [score.reason or None for score in scores]}
        if self._info["kind"] == "process":
            answer["steps"] = [list(score.steps) for score in scores]
        return JSONResponse(answer)


def _error(status: int, said: str) -> Response:
    return JSONResponse({"error": said}, status)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What a reward server serves, and where."""

    reward: RewardOptions
    host: str = "127.0.0.1"
    port: int = 8300
    """0 takes a free one."""
    limits: ServerLimits = field(default_factory=ServerLimits)


def serve(options: ServeOptions, *, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it, which raises `KeyboardInterrupt`. Raises `ConfigError` for a wrong model or address.

    Args:
        options: what to serve.
        say: is given one line as soon as the server answers.
    """
    key = checked_key(options.host, KEY_ENV, "have it compute for them", os.environ)
    with listening(options.host, options.port) as (sock, url):
        from agentrl.servers.reward_scorer import RewardScorer

        scorer = RewardScorer(options.reward)
        told = "with the key in " + KEY_ENV if key else "without a key"
        line = (
            f"{options.reward.model} is served at {url}, {told}; in a run file: rewards: "
            f'["agentrl.rewards.reward_model:reward_server?url={url}"]'
        )
        run_until_signalled(partial(run, scorer, sock, key=key, limits=options.limits, on_ready=lambda: say(line)))


async def run(scorer: RewardScorer, sock: socket.socket, *, key: str, limits: ServerLimits, on_ready: Callable[[], None]) -> None:
    """Serve on a listening socket until it is cancelled.

    Args:
        scorer: the model.
        sock: stays open.
        key: that clients must bring; empty for none.
        limits: how much it takes on.
        on_ready: called as soon as it answers.
    """
    gatherer = Gatherer(scorer.score, limits)
    info = {
        "model": scorer.options.model,
        "kind": "process" if scorer.steps else "outcome",
        "max_length": scorer.max_length,
        "aggregate": scorer.options.aggregate if scorer.steps else None,
        "rows_a_request": limits.rows_a_request,
        "agentrl": version(),
    }
    server = RewardServer(gatherer, info, key=key, limits=limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gatherer.run)
        await nursery.start(listen, server.app(), sock)
        on_ready()
