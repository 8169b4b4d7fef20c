"""A teacher on vLLM servers, under trio: any number of texts scored at once, each by the server with the fewest in flight.

The teacher's weights never change, so a text may be scored by any of its servers, and again by another one where a call failed. Rollout
processes import this module, so it must not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import trio

from agentrl.engines.teacher_api import (
    COMPLETIONS,
    MODELS,
    TOKENIZE,
    Served,
    TokenScores,
    parse_models,
    parse_scores,
    parse_tokens,
    score_body,
    tokenize_body,
)
from agentrl.engines.vllm_api import BadAnswer, refusal
from agentrl.engines.vllm_http import FINAL, FIRST_BACKOFF_S, MOST_BACKOFF_S, SHOWN_FAILURES, Connection, HttpError, HttpServer
from agentrl.errors import ConfigError, RequestRefused, SamplerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MOST_IN_FLIGHT = 32
"""Texts that one server scores at once: prompt log-probs are computed for a whole text at a time, and each holds its logits."""


@dataclass(eq=False)
class _Place:
    url: str
    connection: Connection
    room: trio.CapacityLimiter
    served: Served | None = None
    waiting: int = field(default=0)
    """Texts that it scores, or that wait for it."""


class TeacherServers:
    """The servers of one teacher.

    Args:
        urls: `http://host:port`, one or more.
        timeout_s: longest wait for the scores of one text, every further try included.
        top_k: likeliest tokens to ask for at each place; 0 asks for none.
        vocab_size: ids must be below it; None leaves that open.
        api_key: sent to every server, where it is not empty.
        most_in_flight: texts that one server scores at once.
        connect: makes the connections to a URL, with the headers that each request carries.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float,
        top_k: int = 0,
        vocab_size: int | None = None,
        api_key: str = "",
        most_in_flight: int = MOST_IN_FLIGHT,
        connect: Callable[[str, Mapping[str, str]], Connection] = HttpServer,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._places = [_Place(url=url, connection=connect(url, headers), room=trio.CapacityLimiter(most_in_flight)) for url in urls]
        self._timeout_s, self._top_k, self._vocab_size = timeout_s, top_k, vocab_size

    async def score(self, ids: np.ndarray, first: int) -> TokenScores:
        """The log-probs of `ids[first:]`, in nats at temperature 1.

        Raises `RequestRefused` for a text that the teacher cannot take, and `SamplerUnavailable` where no server scored it in time.
        """
        if not 1 <= first <= len(ids):
            raise RequestRefused(f"a text of {len(ids)} tokens is scored from place 1 on, got {first}: nothing predicts the first token")
        failures: list[str] = []
        avoid = ""
        with trio.move_on_after(self._timeout_s):
            while True:
                place = self._least_busy(avoid)
                place.waiting += 1
                try:
                    async with place.room:
                        return await self._ask(place, ids, first)
                except (HttpError, BadAnswer) as error:
                    failures.append(str(error))
                    avoid = place.url
                    place.served = None  # whoever answers there next may serve another model
                finally:
                    place.waiting -= 1
                await trio.sleep(min(FIRST_BACKOFF_S * 2 ** min(len(failures) - 1, 16), MOST_BACKOFF_S))
        urls = ", ".join(place.url for place in self._places)
        tried = f"{len(failures)} calls failed: {'; '.join(failures[-SHOWN_FAILURES:])}" if failures else "no call failed"
        raise SamplerUnavailable(
            f"no server of the teacher scored a text of {len(ids)} tokens within {self._timeout_s:g} s (servers: {urls}); {tried}. "
            "Look at the servers' logs, start more of them, or raise teacher.timeout_s"
        )

    async def score_all(self, texts: Iterable[tuple[np.ndarray, int]]) -> list[TokenScores]:
        """The same of several texts at once, in their order; the first error ends them all."""
        found: dict[int, TokenScores] = {}

        async def one(index: int, ids: np.ndarray, first: int) -> None:
            found[index] = await self.score(ids, first)

        async with trio.open_nursery() as nursery:
            for index, (ids, first) in enumerate(texts):
                nursery.start_soon(one, index, ids, first)
        return [found[index] for index in range(len(found))]

    async def check(self, text: str, ids: Sequence[int]) -> None:
        """Raise `ConfigError` unless every server has the student's tokenizer and gives the log-probs that will be asked for.

        Args:
            text: of several tokens.
            ids: its tokens under the student's tokenizer, without special ones.
        """
        for place in self._places:
            with trio.move_on_after(self._timeout_s) as scope:
                try:
                    await self._check(place, text, list(ids))
                except (HttpError, BadAnswer, RequestRefused) as error:
                    raise ConfigError(f"teacher.servers: {error}{self._cure(str(error))}") from error
            if scope.cancelled_caught:
                raise ConfigError(f"teacher.servers: {place.url} did not answer within teacher.timeout_s={self._timeout_s:g} s")

    async def aclose(self) -> None:
        """Drop the connections; requests in flight are aborted."""
        for place in self._places:
            await place.connection.aclose()

    def _least_busy(self, avoid: str) -> _Place:
        return min(self._places, key=lambda place: (place.url == avoid, place.waiting))

    async def _ask(self, place: _Place, ids: np.ndarray, first: int) -> TokenScores:
        served = place.served or await self._look(place)
        if served.context_length is not None and len(ids) >= served.context_length:
            raise RequestRefused(
                f"a text of {len(ids)} tokens does not fit the teacher at {place.url}, which takes {served.context_length - 1}: start it "
                "with a larger --max-model-len, or lower sampling.max_episode_tokens or data.max_length"
            )
        reply = await place.connection.request("POST", COMPLETIONS, score_body(served.model, ids, self._top_k))
        if reply.status in FINAL:
            raise RequestRefused(f"teacher {place.url} refused a text of {len(ids)} tokens: {refusal(reply.body)}")
        if reply.status != 200:
            raise BadAnswer(f"teacher {place.url} answered {reply.status}: {refusal(reply.body)}")
        return parse_scores(reply.body, place.url, ids, first, self._top_k, self._vocab_size)

    async def _look(self, place: _Place) -> Served:
        reply = await place.connection.request("GET", MODELS)
        if reply.status != 200:
            raise BadAnswer(f"teacher {place.url} answered {reply.status} to {MODELS}: {refusal(reply.body)}")
        place.served = parse_models(reply.body, place.url)
        return place.served

    async def _check(self, place: _Place, text: str, ids: list[int]) -> None:
        served = await self._look(place)
        body = tokenize_body(served.model, text)
        reply = await place.connection.request("POST", TOKENIZE, body)
        if reply.status == 200:  # a server without a tokenizer is told apart by nothing but its log-probs
            there = parse_tokens(reply.body, place.url)
            if there != ids:
                raise ConfigError(
                    f"teacher.servers: {place.url} serves {served.model!r}, whose tokenizer is another than the student's: {text!r} is "
                    f"{there} there and {ids} here. A teacher on servers must have the student's vocabulary; objective gold takes another "
                    "one, with the teacher in process (teacher.model, without servers)"
                )
        await self._ask(place, np.array(ids, dtype=np.int32), 1)

    def _cure(self, said: str) -> str:
        return f"; start the server with --max-logprobs {self._top_k}" if self._top_k and "logprobs" in said else ""
