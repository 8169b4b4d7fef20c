"""What the vLLM client costs: hundreds of multi-turn episodes against a simulated server in another process; one JSON line.

    python examples/benchmarks/vllm_client.py

The server answers after a while with as many bytes as vLLM would, and does nothing else, so the seconds of CPU are the client's own:
routing, HTTP, reading the answers and checking them, from when all episodes play. `lag` is how much later than asked the event loop
woke up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from itertools import count

import numpy as np
import trio

from agentrl.dispatch import Served, Serving
from agentrl.engines.protocol import Request
from agentrl.engines.vllm import VllmEngine
from agentrl.records import SamplingContract, Version

PROMPT, GIVEN = 500, 100
"""Tokens of the first prompt, and of what the environment adds at each further turn."""
VOCABULARY = 150_000
ID = b"generate-tokens-0123456789abcdef"
WARM_UP_TURNS = 4
"""Until the limits of requests in flight have grown to what the episodes ask for."""
FIGURES = b"vllm:num_requests_running 1.0\nvllm:num_requests_waiting 0.0\nvllm:kv_cache_usage_perc 0.1\nvllm:num_preemptions_total 0.0\n"
HISTOGRAM = b'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="policy"} 0.0\n'


def http(body: bytes, kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def answer(tokens: int) -> bytes:
    """An answer with every field that vLLM sends; its id is to be put in."""
    draw = random.Random(0)
    ids = [draw.randrange(2, VOCABULARY) for _ in range(tokens)]
    chosen = [{"token_id": number, "logprob": -draw.expovariate(1.0), "rank": 1} for number in ids]
    choice = {
        "index": 0,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": ids,
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": [{"version": "0.0", "start": 0, "end": tokens}],
        "logprobs": {"content": [{**token, "top_logprobs": [token]} for token in chosen]},
    }
    usage = {"prompt_tokens": PROMPT, "total_tokens": PROMPT + tokens, "completion_tokens": tokens, "prompt_tokens_details": None}
    whole = {"request_id": ID.decode(), "model": "policy", "created": 1, "usage": usage, "output_mode": "tokens", "choices": [choice]}
    return http(json.dumps(whole, separators=(",", ":")).encode(), "application/json")


class Simulated(asyncio.Protocol):
    """One connection to the simulated server."""

    def __init__(self, reply: bytes, turn_s: float) -> None:
        self.reply, self.turn_s, self.read = reply, turn_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.read += data
        head, end, body = self.read.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length or 0):
            return
        self.read = b""
        if head.startswith(b"GET /metrics"):
            self.write(http(FIGURES + HISTOGRAM * 500, "text/plain"))
        else:
            asked = ID[:-16] + body.partition(b'"request_id":"')[2][:16]
            asyncio.get_running_loop().call_later(self.turn_s * random.uniform(0.5, 1.5), self.write, self.reply.replace(ID, asked, 1))

    def write(self, data: bytes) -> None:
        if isinstance(self.transport, asyncio.WriteTransport) and not self.transport.is_closing():
            self.transport.write(data)


async def serve(tokens: int, turn_s: float) -> None:
    reply = answer(tokens)
    server = await asyncio.get_running_loop().create_server(lambda: Simulated(reply, turn_s), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Meter:
    """What was done since the last `start`."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.start()

    def start(self) -> None:
        self.requests = 0
        self.lags.clear()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    async def watch_the_clock(self) -> None:
        while True:
            asked = trio.current_time() + 0.05
            await trio.sleep_until(asked)
            self.lags.append(trio.current_time() - asked)

    def figures(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {
            "core_share": round(cpu / wall, 4),
            "cpu_us_per_request": round(cpu / self.requests * 1e6),
            "requests_per_s": round(self.requests / wall, 1),
            "lag_p50_ms": round(float(np.median(self.lags)) * 1e3, 2),
            "lag_p99_ms": round(float(np.quantile(self.lags, 0.99)) * 1e3, 2),
            "requests": self.requests,
            "seconds": round(wall, 1),
        }


async def play(engine: VllmEngine, meter: Meter, options: argparse.Namespace, episode: int) -> None:
    draw = np.random.default_rng(episode)
    ids = draw.integers(2, VOCABULARY, PROMPT, dtype=np.int32)
    for turn in range(options.turns):
        contract = SamplingContract(engine="vllm")
        request = Request(ids=ids, max_tokens=options.tokens, contract=contract, seed=turn, stop_ids=(1,), session=str(episode))
        completion = await engine.generate(request)
        assert len(completion.ids) == options.tokens
        meter.requests += 1
        ids = np.concatenate([ids, completion.ids, draw.integers(2, VOCABULARY, GIVEN, dtype=np.int32)])


async def measure(urls: list[str], options: argparse.Namespace) -> dict[str, float]:
    suspects: list[str] = []
    episodes = count()
    meter = Meter()

    async def keep_one_playing() -> None:
        while True:
            await play(engine, meter, options, next(episodes))

    async with VllmEngine.open(timeout_s=120, on_suspect=lambda _, why: suspects.append(why), vocab_size=VOCABULARY) as engine:
        servers = tuple(Served(url=url, model="policy", version=Version()) for url in urls)
        engine.update(Serving(servers=servers, context_length=32768))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.watch_the_clock)
            for _ in range(options.episodes):
                nursery.start_soon(keep_one_playing)
            await trio.sleep(WARM_UP_TURNS * options.turn_s)
            meter.start()
            await trio.sleep(options.seconds)
            figures = meter.figures()
            nursery.cancel_scope.cancel()
    return {**figures, "failures": len(suspects)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=256, help="played at once; as one ends, the next begins")
    parser.add_argument("--seconds", type=float, default=20, help="of the measurement, after a warm-up")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200, help="sampled in a turn")
    parser.add_argument("--turn-s", type=float, default=2, help="mean seconds of a turn")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.tokens, options.turn_s))
        return
    command = [sys.executable, __file__, "--serve", "--tokens", str(options.tokens), "--turn-s", str(options.turn_s)]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(options.servers)]
    try:
        urls = [f"http://127.0.0.1:{server.stdout.readline().strip()}" for server in servers if server.stdout is not None]
        figures = trio.run(measure, urls, options)
    finally:
        for server in servers:
            server.kill()
            server.wait()
    print(
        json.dumps({"benchmark": "vllm_client", "episodes": options.episodes, "turns": options.turns, "tokens": options.tokens, **figures})
    )


if __name__ == "__main__":
    main()
