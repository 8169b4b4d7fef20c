"""Tokens a second of the embedded engine and of transformers' `generate` on the same model; prints one JSON line.

    taskset -c 1 python examples/benchmarks/engine_throughput.py
    taskset -c 1 python examples/benchmarks/engine_throughput.py --ragged

A Qwen3-architecture model of 0.8 M parameters, float32, one thread; 128 requests of 64 tokens after prompts of 16 that all differ.
`fast` and `generic` are the engine's two decoders without a process around them, `process` is the engine as a run uses it, its client
in the same Python, so that it pays for both. Sides take turns, and each side's best round counts. `--ragged` adds the engine's rate
where a tenth of 512 requests are ten times longer, twice as many as there are slots.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import trio

from agentrl.config_engine import EngineConfig
from agentrl.engines.decoder import load_decoder
from agentrl.engines.decoder_generic import GenericDecoder
from agentrl.engines.embedded import EmbeddedEngine, start_engine
from agentrl.engines.protocol import Request
from agentrl.engines.scheduler import Scheduler
from agentrl.records import SamplingContract, Version

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.engines.decoder import Loaded

REQUESTS, PROMPT, TOKENS, VOCABULARY = 128, 16, 64, 512
SLOTS = 256


def make_model(folder: str) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def requests(lengths: list[int]) -> list[Request]:
    random = np.random.default_rng()
    return [
        Request(
            ids=random.integers(0, VOCABULARY, PROMPT).astype(np.int32),
            max_tokens=length,
            contract=SamplingContract(),
            seed=int(random.integers(1 << 31)),
            stop_ids=(),
        )
        for length in lengths
    ]


def generate(model: Any) -> int:
    ids = torch.randint(0, VOCABULARY, (REQUESTS, PROMPT))
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    return REQUESTS * TOKENS


def schedule(scheduler: Scheduler, lengths: list[int]) -> int:
    for number, request in enumerate(requests(lengths)):
        scheduler.submit((0, number), request)
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.step()
    return sum(lengths)


def through_process(path: Path, rounds: int) -> float:
    """Best tokens a second over the socket."""

    async def round_() -> float:
        engine = await EmbeddedEngine.connect(path, timeout_s=300)
        todo = requests([TOKENS] * REQUESTS)
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for request in todo:
                nursery.start_soon(engine.generate, request)
        seconds = time.perf_counter() - begun
        await engine.aclose()
        return REQUESTS * TOKENS / seconds

    return max(trio.run(round_) for _ in range(rounds))


def measure(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(sides, 0.0)
    for round_ in range(rounds + 1):  # the first one warms up
        for name, side in sides.items():
            begun = time.perf_counter()
            tokens = side()
            rate = tokens / (time.perf_counter() - begun)
            best[name] = max(best[name], rate) if round_ else 0.0
    return best


def make_scheduler(loaded: Loaded) -> Scheduler:
    return Scheduler(loaded, num_slots=SLOTS, recompute=False, version=Version(), memory_bytes=4 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ragged", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        from transformers import AutoModelForCausalLM

        fast = load_decoder(folder, EngineConfig(device="cpu"))
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        generic_model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.inference_mode():
            generic = replace(fast, decoder=GenericDecoder(generic_model))
        schedulers = {"fast": make_scheduler(fast), "generic": make_scheduler(generic)}
        lengths = [TOKENS] * REQUESTS
        sides: dict[str, Callable[[], int]] = {"generate": lambda: generate(model)}
        sides |= {name: lambda scheduler=scheduler: schedule(scheduler, lengths) for name, scheduler in schedulers.items()}
        rates = measure(sides, options.rounds)
        if options.ragged:
            ragged = [10 * TOKENS if number % 10 == 0 else TOKENS for number in range(2 * SLOTS)]
            rates |= measure({"ragged": lambda: schedule(schedulers["fast"], ragged)}, 2)
        config = EngineConfig(device="cpu", slots=SLOTS)
        engine = start_engine(folder, config, version=Version(), threads=1, log=Path(folder) / "engine.log")
        try:
            rates["process"] = through_process(engine.socket_path, options.rounds + 1)
        finally:
            engine.stop()
    result: dict[str, Any] = {f"{name}_tokens_per_s": round(rate) for name, rate in rates.items()}
    result["fast_over_generate"] = round(rates["fast"] / rates["generate"], 2)
    print(json.dumps({"benchmark": "engine_throughput", "decoder": fast.description, **result}))


if __name__ == "__main__":
    main()
