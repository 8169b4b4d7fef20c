"""A teacher's vLLM servers without a network: sound answers, broken ones, and delays, as the test says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
import trio.testing

from agentrl.engines.teacher_client import TeacherServers
from agentrl.engines.vllm_http import HttpError, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VOCABULARY = 300


def table(ids: list[int]) -> np.ndarray:
    """[length, vocabulary] log-probs in nats: what the fake teacher thinks of each place."""
    draw = np.random.default_rng(sum(ids))
    logits = draw.normal(0, 2, (len(ids), VOCABULARY))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def answer(ids: list[int], top_k: int) -> dict[str, Any]:
    """As vLLM writes it: a test breaks one part of it."""
    rows: list[Any] = [None]
    for place, token in enumerate(ids[1:], start=1):
        row = table(ids)[place]
        order = np.argsort(-row)
        shown = dict.fromkeys([token, *order[:top_k].tolist()])
        rows.append({str(one): {"logprob": float(row[one]), "rank": int(np.flatnonzero(order == one)[0]) + 1} for one in shown})
    return {"id": "cmpl-1", "choices": [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": rows}]}


def reply(value: Any, status: int = 200) -> Reply:
    return Reply(status=status, body=value if isinstance(value, bytes) else json.dumps(value).encode())


@dataclass
class FakeTeacher:
    """One server."""

    url: str
    turn_s: float = 1.0
    fault: Callable[[int], Reply | Exception | float | None] = lambda call: None
    """By the number of the scoring call: what it answers, raises, or how many seconds longer it takes; None is a good answer."""
    context_length: int | None = 64
    model: str = "teacher"
    shift: int = 0
    """Added to every token that its tokenizer gives."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False

    async def request(self, method: str, target: str, body: bytes = b"") -> Reply:
        if target == "/v1/models":
            adapter = {"id": "a", "parent": self.model, "max_model_len": 1}
            return reply({"data": [adapter, {"id": self.model, "parent": None, "max_model_len": self.context_length}]})
        asked = json.loads(body)
        assert asked["model"] == self.model
        if target == "/tokenize":
            return reply({"tokens": [ord(letter) % VOCABULARY + self.shift for letter in asked["prompt"]], "count": 1})
        assert (method, target) == ("POST", "/v1/completions")
        fault = self.fault(len(self.asked))
        self.asked.append(asked)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(self.turn_s + (fault if isinstance(fault, float) else 0))
        finally:
            self.running -= 1
        if isinstance(fault, Exception):
            raise fault
        return fault if isinstance(fault, Reply) else reply(answer(asked["prompt"], asked["prompt_logprobs"]))

    async def aclose(self) -> None:
        self.closed = True


def lost(url: str) -> HttpError:
    return HttpError(f"the connection to {url} was lost")


def play(body: Callable[[TeacherServers], Any], *servers: FakeTeacher, timeout_s: float = 60.0, **options: Any) -> tuple[Any, float]:
    """Run `body(teacher)` on a clock that jumps; its result, and the seconds that it took."""

    def connect(url: str, headers: Mapping[str, str]) -> FakeTeacher:
        (server,) = [one for one in servers if one.url == url]
        server.headers = headers
        return server

    async def main() -> tuple[Any, float]:
        started = trio.current_time()
        teacher = TeacherServers([one.url for one in servers], timeout_s=timeout_s, connect=connect, **options)
        try:
            return await body(teacher), trio.current_time() - started
        finally:
            await teacher.aclose()

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def fails(kind: type[Exception], match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        play(*arguments, **options)
