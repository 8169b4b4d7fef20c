"""A real server, the learner's model beside it, and requests in flight; what the tests of publishing share."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import torch
import transformers

from agentrl.engines.vllm_control import Control, http_client
from agentrl.engines.vllm_probe import Probe
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.engines.vllm_transports.stream import StreamTransport
from agentrl.quickstart import model_path

if TYPE_CHECKING:
    from collections.abc import Iterator

IDS = tuple(range(20, 60))
TOLERANCE = 1e-4
FLYING, LONG = 16, 900
"""Requests in flight, and their tokens: so many that they are still there when a publish comes."""
ATTEMPTS = 10
"""Times that they may all end before they are seen, on a machine that has other things to do."""


@dataclass
class Fleet:
    """One real server, and the learner's model beside it."""

    url: str
    http: httpx.Client = field(default_factory=http_client)
    model: Any = field(default_factory=lambda: transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32))
    publishers: list[VllmPublisher] = field(default_factory=list)
    sampled: float = 0.0
    """Tokens that the server had sampled before the requests in flight."""

    def control(self, url: str) -> Control:
        return Control(url, self.http, timeout_s=120)

    @property
    def server(self) -> Control:
        return self.control(self.url)

    def publisher(self, transport: str, **options: Any) -> VllmPublisher:
        made = {
            "filesystem": lambda: FilesystemTransport(),
            "shared memory": lambda: StreamTransport(),
            "tcp": lambda: StreamTransport(remote=[self.url]),
        }[transport]()
        self.publishers.append(VllmPublisher(made, self.control, **options))
        return self.publishers[-1]

    def perturb(self, seed: int) -> None:
        """An optimizer step, as it were."""
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))

    def probe(self, ids: tuple[int, ...] = IDS) -> Probe:
        return Probe(ids=ids, logprobs=logprobs_of(self.model, ids), tolerance=TOLERANCE)

    def generate(self, ids: tuple[int, ...] = IDS, *, tokens: int, model: str = "policy", **more: Any) -> dict[str, Any]:
        """One completion; greedy unless told otherwise."""
        sampling = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "logprobs": 0} | more.pop("sampling", {})
        body = {"model": model, "token_ids": list(ids), "sampling_params": sampling, **more}
        answer = self.http.post(f"{self.url}/inference/v1/generate", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    @contextlib.contextmanager
    def flying(self, ids: tuple[int, ...] = IDS, **options: Any) -> Iterator[list[dict[str, Any]]]:
        """Around what happens while many long requests are being decoded; their completions are in the list afterwards."""
        for _ in range(ATTEMPTS):
            with ThreadPoolExecutor(FLYING) as threads:
                choices, calls = self.take_off(threads, ids, options)
                if self.decoding(calls):
                    yield choices
                    break
        else:
            raise AssertionError(f"{ATTEMPTS} times all requests ended before one was seen running")
        for call in calls:
            call.result()  # an error of one is an error

    def take_off(self, threads: ThreadPoolExecutor, ids: tuple[int, ...], options: dict[str, Any]) -> tuple[list[Any], list[Future[None]]]:
        """Have all requests start together; the list that their completions come into, and the calls."""
        choices: list[dict[str, Any]] = []
        started = threading.Barrier(FLYING + 1)

        def fly(seed: int) -> None:
            started.wait()
            choices.append(self.generate(ids, tokens=LONG, sampling={"temperature": 1.0, "seed": seed}, **options))

        self.server.command("/pause", query={"mode": "keep", "clear_cache": "false"})  # they arrive, and wait for each other
        calls = [threads.submit(fly, seed) for seed in range(FLYING)]
        started.wait()
        self.server.get("/health")
        self.sampled = self.figure("vllm:generation_tokens_total")
        self.server.command("/resume")
        return choices, calls

    def decoding(self, calls: list[Future[None]]) -> bool:
        """Wait until all requests run and have tokens; False where one has ended before that was seen."""
        while not any(call.done() for call in calls):
            sampled = self.figure("vllm:generation_tokens_total") - self.sampled
            if sampled >= 2 * FLYING and self.figure("vllm:num_requests_running") == FLYING and not any(call.done() for call in calls):
                return True
        return False

    def figure(self, name: str) -> float:
        """A number of the server's metrics."""
        text = self.http.get(f"{self.url}/metrics", timeout=60).text
        line = next(line for line in text.splitlines() if line.startswith(name))
        return float(line.rpartition(" ")[2])


def logprobs_of(model: Any, ids: tuple[int, ...], temperature: float = 1.0) -> tuple[float, ...]:
    """transformers' log-probs of `ids[1:]`."""
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double() / temperature, -1)
    return tuple(float(table[place, token]) for place, token in enumerate(ids[1:]))


def worst(got: tuple[float, ...], wanted: tuple[float, ...]) -> float:
    return max(abs(one - other) for one, other in zip(got, wanted, strict=True))
