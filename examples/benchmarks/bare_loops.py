"""How fast generation and training can go side by side: one bare torch loop pinned to each of two cores; prints one JSON line.

    python examples/benchmarks/bare_loops.py --seconds 20

One process only generates (transformers' `generate`, or with `--loop plain` a decode loop without its extras), the other only trains
(forward, backward, clipping, AdamW on rows of equal length), both on the fixed work of `bench_model.py` and with one thread each. A
trainer that overlaps the two perfectly, at no cost of its own, gets the smaller of the two rates: the overlap ceiling. Both rates are
taken while both loops run. Needs torch and transformers, nothing of agentrl.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from bench_model import FIXED_TOKENS, GROUP_SIZE, GROUPS_PER_STEP, VOCABULARY, make_model, prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

ROWS = GROUPS_PER_STEP * GROUP_SIZE


def generation_step(folder: str, loop: str) -> Callable[[], Any]:
    """One call samples the completions of one step."""
    import torch
    import transformers

    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [task.text for task in prompts("fixed", GROUPS_PER_STEP) for _ in range(GROUP_SIZE)]
    ids = tokenizer(texts, return_tensors="pt").input_ids
    # transformers renamed the argument in 5.24.
    cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @torch.no_grad()
    def library() -> torch.Tensor:
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": FIXED_TOKENS, "do_sample": True, "top_k": 0}
        sampled: torch.Tensor = model.generate(input_ids=ids, disable_compile=True, **options)
        return sampled

    @torch.no_grad()
    def plain() -> torch.Tensor:
        cache = {cache_name: transformers.DynamicCache(config=model.config)}
        tokens, drawn = ids, []
        for _ in range(FIXED_TOKENS):
            logits = model(input_ids=tokens, logits_to_keep=1, **cache).logits[:, -1]
            tokens = logits.softmax(-1).multinomial(1)
            drawn.append(tokens)
        return torch.cat(drawn, dim=1)

    return library if loop == "generate" else plain


def training_step(folder: str, loop: str) -> Callable[[], Any]:
    """One call trains the completions of one step: one update."""
    import torch
    import transformers

    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    length = len(prompts("fixed", 1)[0].text.split()) + FIXED_TOKENS
    ids = torch.randint(3, VOCABULARY, (ROWS, length), generator=generator)
    advantages = torch.randn(ROWS, 1, generator=generator)

    def train() -> None:
        logits = model(input_ids=ids, logits_to_keep=FIXED_TOKENS + 1, use_cache=False).logits[:, :-1]
        targets = ids[:, -FIXED_TOKENS:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        (losses.view_as(targets) * advantages).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return train


def work(
    make: Callable[[str, str], Callable[[], Any]], folder: str, loop: str, cpu: int, seconds: float, ready: Barrier, out: Connection
) -> None:
    """Warm up, wait for the other process, then report when each step ended until `seconds` were over, and completions a CPU second."""
    os.sched_setaffinity(0, {cpu})
    import torch

    torch.set_num_threads(1)
    step = make(folder, loop)
    step()
    ready.wait()
    started, cpu_started = time.monotonic(), time.process_time()
    ends: list[float] = []
    while not ends or ends[-1] < seconds:
        step()
        ends.append(time.monotonic() - started)
    out.send((ends, ROWS * len(ends) / (time.process_time() - cpu_started)))


def measure(folder: str, loop: str, cpus: list[int], seconds: float) -> dict[str, Any]:
    """Run both loops at once and count the steps of each in the time in which both ran."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    receivers, processes = [], []
    for make, cpu in zip((generation_step, training_step), cpus, strict=True):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(make, folder, loop, cpu, seconds, ready, sender), daemon=True)
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    ends, per_cpu_s = zip(*(receiver.recv() for receiver in receivers), strict=True)
    for process in processes:
        process.join()
    together = min(times[-1] for times in ends)
    # A loop that overran the other's end counts up to its last step within.
    inside = [[time for time in times if time <= together] or times[:1] for times in ends]
    generated, trained = (ROWS * len(times) / times[-1] for times in inside)
    return {
        "benchmark": "bare_loops",
        "loop": loop,
        "cpus": cpus,
        "generate_completions_per_s": round(generated, 2),
        "train_completions_per_s": round(trained, 2),
        "overlap_ceiling": round(min(generated, trained), 2),
        "in_turn_one_core": round(1 / (1 / generated + 1 / trained), 2),
        "seconds": round(together, 2),
        # On a core that something else uses too, these still say what an idle one would give.
        "generate_per_cpu_s": round(per_cpu_s[0], 2),
        "train_per_cpu_s": round(per_cpu_s[1], 2),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the model; by default it is made in a temporary one")
    parser.add_argument("--loop", choices=["generate", "plain"], default="generate", help="how to generate")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--cpus", default="0,1", help="the core that generates and the one that trains")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or scratch
        make_model(folder)
        print(json.dumps(measure(folder, options.loop, [int(cpu) for cpu in options.cpus.split(",")], options.seconds)))


if __name__ == "__main__":
    main()
