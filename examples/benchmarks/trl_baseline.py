"""TRL's GRPO on the work of `bench_model.py`; run by a Python that has trl (1.16), prints one JSON line.

    python examples/benchmarks/trl_baseline.py --mode fixed --threads 2
    python examples/benchmarks/trl_baseline.py --mode ragged --threads 2

What TRL is given: float32 on the CPU, beta 0, one update a batch, no gradient checkpointing, no logging, and (ragged) an asynchronous
reward function that gathers all waits of a step, so that a step waits for the longest and not for the sum. Completions end at their
lengths through a stopping criterion for each row: a row that is done is padded with the end token, as after an end token that the model
sampled itself, and so trains its first end token. Its budget is one less for that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the model; by default it is made in a temporary one")
    parser.add_argument("--mode", choices=["fixed", "ragged"], default="fixed")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps; the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpus", help="cores to stay on, as in 0,1; by default all")
    parser.add_argument("--micro-batch", type=int, default=128, help="rows of one forward; 128 is one micro-batch a step")
    parser.add_argument("--no-wait", action="store_true", help="ragged lengths without the environment's waits")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options, Path(scratch))))


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Train a few steps and time them."""
    import torch
    import trl
    from bench_model import GROUP_SIZE, GROUPS_PER_STEP, make_model, prompts
    from datasets import Dataset

    torch.set_num_threads(options.threads)
    folder = options.model or str(scratch / "model")
    make_model(folder)
    tasks = prompts(options.mode, GROUPS_PER_STEP * options.steps)
    ends: list[float] = []
    dataset = Dataset.from_list([{"prompt": task.text, "index": task.index} for task in tasks])
    cpu_ends: list[float] = []
    ready = trainer(options, folder, scratch, dataset, ends, cpu_ends)
    started = time.perf_counter()
    ready.train()
    rows = GROUPS_PER_STEP * GROUP_SIZE
    # Only whole steps after the first: from the end of step 1 to the end of the last.
    seconds, steady = ends[-1] - ends[0], tasks[GROUPS_PER_STEP:]
    tokens = sum(task.max_tokens for task in steady) * GROUP_SIZE
    return {
        "benchmark": "trl_grpo",
        "trl": trl.__version__,
        "mode": options.mode,
        "waits": options.mode == "ragged" and not options.no_wait,
        "threads": options.threads,
        "micro_batch": options.micro_batch,
        "steps": options.steps,
        "completions_per_s": round(rows * (len(ends) - 1) / seconds, 2),
        "completions_per_cpu_s": round(rows * (len(ends) - 1) / (cpu_ends[-1] - cpu_ends[0]), 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "mean_length": sum(_lengths[rows:]) / len(_lengths[rows:]),
        "expected_length": sum(task.max_tokens for task in steady) / len(steady),
        "first_step_s": round(ends[0] - started, 3),
        "step_s": [round(after - before, 3) for before, after in pairwise(ends)],
    }


def trainer(options: argparse.Namespace, folder: str, scratch: Path, dataset: Any, ends: list[float], cpu_ends: list[float]) -> Any:
    """A GRPOTrainer that notes wall clock and CPU time of each step's end in `ends` and `cpu_ends`."""
    import transformers
    from bench_model import FIXED_TOKENS, GROUP_SIZE, GROUPS_PER_STEP, LONG_TOKENS
    from trl import GRPOConfig, GRPOTrainer

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            cpu_ends.append(time.process_time())

    rows = GROUPS_PER_STEP * GROUP_SIZE
    config = GRPOConfig(
        output_dir=str(scratch / "run"),
        use_cpu=True,
        bf16=False,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=rows // options.micro_batch,
        num_generations=GROUP_SIZE,
        num_iterations=1,
        max_steps=options.steps,
        max_completion_length=FIXED_TOKENS if options.mode == "fixed" else LONG_TOKENS,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=model_for(options.mode, folder),
        args=config,
        reward_funcs=waiting_reward if options.mode == "ragged" and not options.no_wait else plain_reward,
        train_dataset=dataset,
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )


def model_for(mode: str, folder: str) -> Any:
    """The model in float32; in ragged mode its `generate` ends each row at the length that its prompt's first token asks for."""
    import torch
    import transformers
    from bench_model import LONG_MARK_ID, LONG_TOKENS, SHORT_TOKENS

    class Budgets(transformers.StoppingCriteria):
        def __init__(self, prompt_ids: torch.Tensor) -> None:
            long = (prompt_ids == LONG_MARK_ID).any(dim=1)
            # One less: the end token that pads a finished row is trained as part of it.
            self.last = torch.where(long, LONG_TOKENS, SHORT_TOKENS - 1) + prompt_ids.shape[1]

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.last

    class RaggedQwen3(transformers.Qwen3ForCausalLM):
        def generate(self, input_ids: torch.Tensor, **rest: Any) -> Any:
            return super().generate(input_ids=input_ids, stopping_criteria=[Budgets(input_ids)], **rest)

    kind = transformers.Qwen3ForCausalLM if mode == "fixed" else RaggedQwen3
    return kind.from_pretrained(folder, dtype=torch.float32)


_lengths: list[int] = []
"""Tokens of every completion, as the reward functions saw them."""


def plain_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The shared reward."""
    from bench_model import reward_of

    _lengths.extend(map(len, completion_ids))
    return [reward_of(ids[0]) for ids in completion_ids]


_draw = random.Random(1)


async def waiting_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The shared reward, after every episode has waited for its environment; all wait at once."""
    from bench_model import draw_wait_s

    await asyncio.gather(*(asyncio.sleep(draw_wait_s(_draw)) for _ in completion_ids))
    return plain_reward(completion_ids)


if __name__ == "__main__":
    main()
