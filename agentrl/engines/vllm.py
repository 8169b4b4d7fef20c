"""The vLLM servers' client for rollouts, under trio: one engine over any number of servers, which come and go.

Rollout processes import this module, so it must not load torch.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import trio

from agentrl.engines.protocol import Completion
from agentrl.engines.vllm_api import (
    GENERATE,
    METRICS,
    BadAnswer,
    Call,
    check_sendable,
    generate_body,
    parse_answer,
    reference_model,
    refusal,
)
from agentrl.engines.vllm_http import FINAL, FIRST_BACKOFF_S, MOST_BACKOFF_S, SHOWN_FAILURES, Connection, HttpError, HttpServer
from agentrl.engines.vllm_pace import read_load
from agentrl.engines.vllm_routing import Place, Router, Ticket
from agentrl.errors import RequestRefused, SamplerUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from agentrl.dispatch import Serving
    from agentrl.engines.protocol import Request

LOOK_S = 1.0
"""Between two looks at a server's figures."""
LOOK_TIMEOUT_S = 5.0


class VllmEngine:
    """The engine as rollout processes see it; any number of calls may be in flight. Made by `VllmEngine.open`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        timeout_s: float,
        on_suspect: Callable[[str, str], None],
        max_requests: int | None,
        vocab_size: int | None,
        connect: Callable[[str], Connection],
    ) -> None:
        self.context_length = 0
        """Tokens that prompt and completion may hold together, as the last `update` said; 0 before the first."""
        self._nursery = nursery
        self._name, self._numbers = secrets.token_hex(4), count()
        self._timeout_s = timeout_s
        self._on_suspect = on_suspect
        self._vocab_size = vocab_size
        self._connect = connect
        self._router = Router(max_requests)
        self._connections: WeakKeyDictionary[Place, Connection] = WeakKeyDictionary()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        timeout_s: float,
        on_suspect: Callable[[str, str], None],
        max_requests: int | None = None,
        vocab_size: int | None = None,
        api_key: str = "",
        connect: Callable[[str, Mapping[str, str]], Connection] = HttpServer,
    ) -> AsyncIterator[VllmEngine]:
        """An engine without servers until `update`; leaving the block aborts what is in flight.

        Args:
            timeout_s: longest wait for one completion, with waiting for a server and every further try.
            on_suspect: called with a server's URL and what it did wrong, for each failure.
            max_requests: most requests in flight on one server, from here.
            vocab_size: of the model; sampled ids must be below it.
            api_key: sent to every server, where it is not empty.
            connect: makes the connections to a URL, with the headers that each request carries.
        """
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        async with trio.open_nursery() as nursery:
            engine = cls(
                nursery,
                timeout_s=timeout_s,
                on_suspect=on_suspect,
                max_requests=max_requests,
                vocab_size=vocab_size,
                connect=lambda url: connect(url, headers),
            )
            try:
                yield engine
            finally:
                nursery.cancel_scope.cancel()
                await engine.aclose()

    def update(self, serving: Serving) -> None:
        """Use these servers from now on. Requests in flight on others are sent again elsewhere, and those that wait are sent on."""
        self.context_length = serving.context_length
        joined, _ = self._router.update(serving.servers)
        for place in joined:
            self._connections[place] = self._connect(place.url)
            self._nursery.start_soon(self._watch, place)

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; see `Engine`. A prompt that fills the context gives an empty one that ended by `length`.

        Raises `SamplerUnavailable` where no server answered in time, and its kind `RequestRefused` where the request itself is at fault.
        """
        check_sendable(request)
        ticket = Ticket(request.session, self._timeout_s)
        failures: list[str] = []
        while ticket.left_s > 0 and (place := await self._router.take(ticket)) is not None:
            with ticket.spending():
                completion = await self._try(place, ticket, request, failures)
                if completion is not None:
                    return completion
            if ticket.left_s <= 0:
                self._suspect(place, f"{place.url} gave no completion in the {self._timeout_s:g} s that a request has (engine.timeout_s)")
        raise SamplerUnavailable(self._gave_up(failures))

    async def aclose(self) -> None:
        """Drop the connections; requests in flight are aborted."""
        for place in self._router.places:
            place.cancel_calls()
        for connection in self._connections.values():
            await connection.aclose()

    async def _try(self, place: Place, ticket: Ticket, request: Request, failures: list[str]) -> Completion | None:
        """Make one call; None where it is to be made again. That its server left is no failure, and it is made again at once."""
        try:
            with ticket.scope:
                completion = await self._ask(place, request)
                place.answered()
                return completion
            return None
        except (HttpError, BadAnswer) as error:
            failures.append(str(error))
            ticket.avoid = place.url
            place.failed()
            self._suspect(place, str(error))
        finally:
            self._router.give_back(place, ticket.scope)
        await trio.sleep(min(FIRST_BACKOFF_S * 2 ** min(len(failures), 16), MOST_BACKOFF_S))
        return None

    async def _ask(self, place: Place, request: Request) -> Completion:
        served = place.served
        max_tokens = min(request.max_tokens, self.context_length - len(request.ids))
        if max_tokens < 1:
            return Completion(ids=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32), versions=(), finish_reason="length")
        reference = request.contract.reference_share == 1
        model = reference_model(served.model, served.version) if reference else served.model
        call = Call(
            request=request,
            id=f"{self._name}{next(self._numbers):08x}",
            url=served.url,
            model=model,
            max_tokens=max_tokens,
            version=served.version,
            beneath=served.fixed or model != served.model,
            vocab_size=self._vocab_size,
        )
        reply = await self._connections[place].request("POST", GENERATE, generate_body(call))
        if reply.status in FINAL:
            raise RequestRefused(f"{served.url} refused a request of {len(request.ids)} + {max_tokens} tokens: {refusal(reply.body)}")
        if reply.status != 200:
            raise BadAnswer(f"{served.url} answered {reply.status}: {refusal(reply.body)}")
        return parse_answer(reply.body, call)

    async def _watch(self, place: Place) -> None:
        """Follow one server's figures until it leaves, and let requests in as they allow."""
        connection = self._connections[place]
        try:
            while not place.retired:
                started = trio.current_time()
                await self._look(place, connection)
                self._router.admit()
                await trio.sleep_until(started + LOOK_S)
        finally:
            await connection.aclose()

    async def _look(self, place: Place, connection: Connection) -> None:
        why = f"{place.url} did not show its figures within {LOOK_TIMEOUT_S:g} s"
        with trio.move_on_after(LOOK_TIMEOUT_S):
            try:
                reply = await connection.request("GET", METRICS)
                load = read_load(reply.body.decode("utf-8", "replace"))
                place.pace.follow(load, in_flight=len(place.calls), wanted=self._router.waiting > 0)
                return
            except (HttpError, ValueError) as error:
                why = f"{place.url}: {error}"
        self._suspect(place, why)

    def _suspect(self, place: Place, why: str) -> None:
        if not place.retired:
            self._on_suspect(place.url, why)

    def _gave_up(self, failures: list[str]) -> str:
        urls = ", ".join(place.url for place in self._router.places) or "none"
        tried = f"{len(failures)} calls failed: {'; '.join(failures[-SHOWN_FAILURES:])}" if failures else "no call failed"
        return (
            f"no vLLM server gave a completion within {self._timeout_s:g} s (in use now: {urls}); {tried}. "
            "Look at the servers' logs, start more of them, or raise engine.timeout_s"
        )
