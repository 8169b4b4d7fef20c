"""vLLM servers without a network, for tests of the client: what they answer, and when, is for the test to say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
import trio.testing

from agentrl.dispatch import Served, Serving
from agentrl.engines.protocol import Request
from agentrl.engines.vllm import VllmEngine
from agentrl.engines.vllm_http import HttpError, Reply
from agentrl.errors import SamplerUnavailable
from agentrl.records import SamplingContract, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

A, B = "http://a", "http://b"
VOCABULARY = 1000
STOP = 1


def make_request(seed: int = 0, *, prompt: int = 4, max_tokens: int = 8, session: str = "", **contract: Any) -> Request:
    return Request(
        ids=np.arange(10, 10 + prompt, dtype=np.int32),
        max_tokens=max_tokens,
        contract=SamplingContract(engine="vllm", **contract),
        seed=seed,
        stop_ids=(STOP,),
        session=session,
    )


def make_answer(ids: list[int], *, request_id: str = "r", versions: tuple[tuple[str, int, int], ...] | None = None) -> dict[str, Any]:
    """As vLLM writes it; a test breaks one part of it."""
    spans = (("0.0", 0, len(ids)),) if versions is None else versions
    content = [{"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": []} for token in ids]
    choice = {
        "index": 0,
        "finish_reason": "stop" if ids and ids[-1] == STOP else "length",
        "stop_reason": None,
        "token_ids": ids,
        "logprobs": {"content": content},
        "weight_versions": [{"version": version, "start": start, "end": end} for version, start, end in spans],
    }
    return {"request_id": f"generate-tokens-{request_id}", "model": "policy", "output_mode": "tokens", "choices": [choice]}


def as_reply(answer: Any, status: int = 200) -> Reply:
    return Reply(status=status, body=json.dumps(answer).encode())


def sampled_of(seed: int) -> list[int]:
    """What a sound fake server samples for a request: as much as its seed."""
    return [2 + seed % 500, 3 + seed // 500, STOP]


@dataclass
class FakeServer:
    """One server."""

    url: str
    turn_s: float = 1.0
    fault: Callable[[int], Reply | Exception | float | None] = lambda call: None
    """By the number of the call: what it answers, raises, or how many seconds longer it takes; None is a good answer."""
    version: str = "0.0"
    waiting: int = 0
    preemptions: int = 0
    cache: float = 0.1
    figures: Reply | Exception | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    aborted: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False

    async def request(self, method: str, target: str, body: bytes = b"") -> Reply:
        if target == "/metrics":
            return self._figures()
        assert (method, target) == ("POST", "/inference/v1/generate")
        asked = json.loads(body)
        fault = self.fault(len(self.asked))
        self.asked.append(asked)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(self.turn_s + (fault if isinstance(fault, float) else 0))
        except trio.Cancelled:
            self.aborted += 1
            raise
        finally:
            self.running -= 1
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, Reply):
            return fault
        ids = sampled_of(asked["sampling_params"]["seed"])
        return as_reply(make_answer(ids, request_id=asked["request_id"], versions=((self.version, 0, len(ids)),)))

    async def aclose(self) -> None:
        self.closed = True

    def _figures(self) -> Reply:
        if isinstance(self.figures, Exception):
            raise self.figures
        text = (
            f'vllm:num_requests_running{{engine="0"}} {self.running}.0\nvllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n'
            f'vllm:num_requests_waiting_by_reason{{engine="0",reason="deferred"}} 99.0\n'
            f'vllm:kv_cache_usage_perc{{engine="0"}} {self.cache}\nvllm:num_preemptions_total{{engine="0"}} {self.preemptions}.0\n'
        )
        return self.figures or Reply(status=200, body=text.encode())


class FakeServers:
    """Servers by URL, and the engine's way to them."""

    def __init__(self, **servers: FakeServer) -> None:
        self.by_url = {server.url: server for server in servers.values()}

    def connect(self, url: str, headers: Mapping[str, str]) -> FakeServer:
        server = self.by_url[url]
        server.headers = headers
        return server


def serving(*servers: FakeServer, model: str = "policy", step: int = 0, context_length: int = 64) -> Serving:
    served = tuple(Served(url=server.url, model=model, version=Version(step=step)) for server in servers)
    return Serving(servers=served, context_length=context_length)


def lost(url: str = "http://a") -> HttpError:
    return HttpError(f"the connection to {url} was lost")


def play(body, *servers, timeout_s=60.0, **options):
    """Run `body(engine)` with the servers in use, on a clock that jumps; returns (its result, seconds, suspects)."""
    net = FakeServers(**{server.url: server for server in servers})
    suspects = []

    async def main():
        started = trio.current_time()
        options.setdefault("on_suspect", lambda url, why: suspects.append((url, why)))
        async with VllmEngine.open(timeout_s=timeout_s, connect=net.connect, **options) as engine:
            engine.update(serving(*servers))
            result = await body(engine)
            return result, trio.current_time() - started

    result, seconds = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return result, seconds, suspects


def give_up(*arguments, **named):
    """The error that a run ends with."""
    with pytest.raises(BaseExceptionGroup) as raised:
        play(*arguments, **named)
    error = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, SamplerUnavailable)
    return error


async def ask_all(engine, requests):
    """Ask at once; the completions by seed."""
    answers = {}

    async def ask(request):
        completion = await engine.generate(request)
        assert request.seed not in answers, "a request was answered twice"
        answers[request.seed] = completion

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(ask, request)
    return answers


def check_all(answers, seeds):
    assert {seed: completion.ids.tolist() for seed, completion in answers.items()} == {seed: sampled_of(seed) for seed in seeds}
