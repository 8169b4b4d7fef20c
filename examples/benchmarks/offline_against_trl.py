"""SFT and DPO beside TRL on the same model and rows: speed, loss curves, memory. Prints one JSON line a comparison.

    python examples/benchmarks/offline_against_trl.py sft dpo memory_sft memory_dpo [--peer-python PATH_OF_A_PYTHON_WITH_TRL] [--threads 2]
    python examples/benchmarks/offline_against_trl.py sft dpo --device cuda

Each side runs in a process of its own, in turn, through what its users call: `agentrl.train` and TRL's trainers, over the same JSON lines
in the same order, float32 (on a GPU bfloat16 over float32 weights), AdamW without decay, a constant learning rate and clipping at 1.
`trl` is TRL as it comes, with gradient checkpointing; `trl_lean` is without it, as agentrl is. `tokens_per_s` counts real tokens,
padding aside and a pair's prompt twice, from the end of the second step to the end of the last one. `curve_difference` is the largest
difference between agentrl's loss of a step and another side's, of any seed; a seed is a model and rows.

memory_*: the peak of a step above what was held before it, gradients aside, with a vocabulary of 262,144 words and 2,048 tokens. `naive` is
the loss over whole logits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

END, MANY_WORDS = "<eos>", 262_144
WORDS = {"cpu": 512, "cuda": 32_768}
LONGER = {"cpu": 1, "cuda": 4}
"""How much longer rows are on a GPU."""
BATCH, STEPS = 32, 12
LR = {"cpu": 1e-3, "cuda": 1e-4}
ROWS = BATCH * STEPS
MEMORY_ROWS, MEMORY_TOKENS = 8, 256
"""Texts of a step and tokens of each; of DPO half as many pairs."""
MEMORY = ("memory_sft", "memory_dpo")


def lengths(draw: np.random.Generator, median: float, most: int) -> int:
    """Log-normal, as lengths of texts are: most rows are much shorter than the longest."""
    return int(np.clip(draw.lognormal(np.log(median), 0.65), 4, most))


def words(draw: np.random.Generator, count: int, vocabulary: int) -> str:
    """So many tokens."""
    return " ".join(f"w{index}" for index in draw.integers(1, vocabulary, count))


def write_rows(path: Path, method: str, seed: int, device: str) -> None:
    """The rows of a seed as JSON lines."""
    draw, vocabulary, longer = np.random.default_rng(seed), WORDS[device], LONGER[device]
    rows: list[dict[str, str]] = []
    for _ in range(batch_of(method) * 3 if method in MEMORY else ROWS):
        if method == "sft":
            rows.append({"text": words(draw, lengths(draw, 65 * longer, 240 * longer), vocabulary)})
        elif method == "memory_sft":
            rows.append({"text": words(draw, MEMORY_TOKENS - 1, MANY_WORDS)})
        elif method == "memory_dpo":
            half = MEMORY_TOKENS // 2
            prompt = words(draw, half, MANY_WORDS)
            rows.append({"prompt": prompt + " "} | {side: words(draw, half - 1, MANY_WORDS) for side in ("chosen", "rejected")})
        else:
            prompt = words(draw, lengths(draw, 50 * longer, 160 * longer), vocabulary)
            answers = {side: words(draw, lengths(draw, 35 * longer, 120 * longer), vocabulary) for side in ("chosen", "rejected")}
            rows.append({"prompt": prompt + " "} | answers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def batch_of(method: str) -> int:
    """Rows of a step."""
    return {"memory_sft": MEMORY_ROWS, "memory_dpo": MEMORY_ROWS // 2}.get(method, BATCH)


def write_model(folder: Path, vocabulary: int, seed: int) -> None:
    """A random model of Qwen3's architecture, one token a word; 0.85 M parameters, 17 M with the largest vocabulary, 210 M on a GPU."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 32}
    if vocabulary == MANY_WORDS:
        shape |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    if vocabulary == WORDS["cuda"]:
        shape = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 14, "num_attention_heads": 16, "head_dim": 64}
    core = Tokenizer(WordLevel({END: 0} | {f"w{index}": index for index in range(1, vocabulary)}, unk_token=END))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([END])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END).save_pretrained(folder)
    torch.manual_seed(seed)
    Qwen3ForCausalLM(
        Qwen3Config(
            **shape,
            vocab_size=vocabulary,
            num_key_value_heads=shape["num_attention_heads"] // 2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=0,
            pad_token_id=0,
            bos_token_id=None,
        )
    ).save_pretrained(folder)


class Watch:
    """Notes each step: its loss, when it ended, and the memory that it took."""

    def __init__(self, gradients: int = 0) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []
        self.peaks: list[float] = []
        self._gradients = gradients
        self._before = 0

    def begin(self) -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmHWM")

    def end(self) -> None:
        """A step is done."""
        self.ends.append(time.perf_counter())
        self.peaks.append((_status("VmHWM") - self._before - self._gradients) / 2**20)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status: this benchmark needs Linux")


def run_agentrl(method: str, model: Path, rows: Path, threads: int, watch: Watch, device: str) -> None:
    """What `agentrl train` does."""
    from agentrl import objectives, runfile
    from agentrl.data.prepare import prepare
    from agentrl.learner import Learner
    from agentrl.offline_batches import ShuffledBatches
    from agentrl.rollout.tokenizer import load_tokenizer

    batch = batch_of(method)
    objective: dict[str, Any] = {"name": method.removeprefix("memory_")}
    values = {"model": str(model), "dataset": str(rows), "objective": objective, "batch_size": batch, "data": {"shuffle": False}}
    config = runfile.from_mapping(values | {"learner": {"lr": LR[device], "betas": [0.9, 0.999], "device": device}, "epochs": 1})
    found, options = objectives.get(objective["name"]), objectives.validate(config.objective)
    assert found.data is not None
    examples = prepare(config, found.data, load_tokenizer(str(model)), "train", say=print)
    learner = Learner(config, found, options, str(model), threads=threads)
    batches = ShuffledBatches(examples, batch_size=batch, seed=None, last=len(examples))
    for step in range(len(examples) // batch):
        watch.begin()
        watch.losses.append(learner.update_examples(batches.take(step))["loss"])
        watch.end()


def run_trl(method: str, model: Path, rows: Path, threads: int, watch: Watch, device: str, *, lean: bool = False) -> None:
    """What a script with TRL's trainers does; `lean` switches off the gradient checkpointing that they have by default."""
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # type: ignore[attr-defined,import-not-found,unused-ignore]

    torch.set_num_threads(threads)

    class Notes(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            watch.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            watch.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                watch.losses.append(float(logs["loss"]))

    kind, trainer = (DPOConfig, DPOTrainer) if method.endswith("dpo") else (SFTConfig, SFTTrainer)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = kind(
            output_dir=scratch,
            use_cpu=device == "cpu",
            bf16=device == "cuda",
            gradient_checkpointing=not lean,
            per_device_train_batch_size=batch_of(method),
            num_train_epochs=1,
            learning_rate=LR[device],
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data = load_dataset("json", data_files=str(rows), cache_dir=scratch)["train"]
        trainer(model=str(model), args=arguments, train_dataset=data, callbacks=[Notes()]).train()


def run_naive(method: str, model: Path, rows: Path, threads: int, watch: Watch, device: str) -> None:
    """The loss over whole logits, texts of equal lengths."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR[device])
    reference = AutoModelForCausalLM.from_pretrained(model) if method == "memory_dpo" else None
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    sides = ["chosen", "rejected"] if reference is not None else ["text"]
    batch = batch_of(method)
    for start in range(0, len(found), batch):
        watch.begin()
        texts = [row.get("prompt", "") + row[side] + END for side in sides for row in found[start : start + batch]]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        if reference is None:
            loss = policy(input_ids=ids, labels=ids).loss
        else:
            with torch.no_grad():
                before = naive_sums(reference, ids)
            chosen, rejected = (naive_sums(policy, ids) - before).split(batch)
            loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.losses.append(float(loss))
        watch.end()


def naive_sums(model: Any, ids: Any) -> Any:
    """[texts] log-probs of the second halves."""
    half = MEMORY_TOKENS // 2
    logprobs = model(input_ids=ids).logits[:, half - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, ids[:, half:, None])[..., 0].sum(-1)


SIDES = {"agentrl": run_agentrl, "trl": run_trl, "trl_lean": partial(run_trl, lean=True), "naive": run_naive}


def measure(side: str, method: str, folder: Path, threads: int, device: str) -> dict[str, Any]:
    """Run one side in this process."""
    from safetensors import safe_open

    with safe_open(folder / "model" / "model.safetensors", "pt") as weights:
        size = sum(int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118  # it is no mapping
    watch = Watch(gradients=4 * size)
    SIDES[side](method, folder / "model", folder / "rows.jsonl", threads, watch, device)
    return {"losses": watch.losses, "seconds": watch.ends[-1] - watch.ends[1], "peak_mib": max(watch.peaks[1:]), "parameters": size}


def counted(path: Path, method: str) -> int:
    """Real tokens of the steps that are timed, ends included."""
    rows = [json.loads(line) for line in path.read_text().splitlines()][2 * BATCH :]
    if method == "sft":
        return sum(len(row["text"].split()) + 1 for row in rows)
    return sum(2 * len(row["prompt"].split()) + len(row["chosen"].split()) + len(row["rejected"].split()) + 2 for row in rows)


def start(python: str, side: str, method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own."""
    out, threads = folder / f"{side}.json", options.threads
    command = [python, __file__, method, "--side", side, "--out", str(out), "--threads", str(threads), "--device", options.device]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env=os.environ | quiet | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def compare(method: str, pythons: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, in turn, seed after seed."""
    speeds: dict[str, list[float]] = {side: [] for side in pythons}
    difference = 0.0
    last: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_model(folder / "model", WORDS[options.device], seed)
            write_rows(folder / "rows.jsonl", method, seed, options.device)
            tokens = counted(folder / "rows.jsonl", method)
            found = {side: start(python, side, method, folder, options) for side, python in pythons.items()}
        for side, one in found.items():
            speeds[side].append(tokens / one["seconds"])
            last[side] = [round(loss, 4) for loss in one["losses"]]
        for peer in ("trl", "trl_lean"):
            difference = max(difference, *(abs(a - b) for a, b in zip(found["agentrl"]["losses"], found[peer]["losses"], strict=True)))
    ratios, lean = ([ours / theirs for ours, theirs in zip(speeds["agentrl"], speeds[peer], strict=True)] for peer in ("trl", "trl_lean"))
    return {
        "benchmark": method,
        "device": options.device,
        "threads": options.threads,
        **{f"{side}_tokens_per_s": [round(speed) for speed in values] for side, values in speeds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratios_lean": [round(ratio, 2) for ratio in lean],
        "curve_difference": float(f"{difference:.3g}"),
        "last_curves": last,
    }


def compare_memory(method: str, pythons: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a step with the large vocabulary."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder / "model", MANY_WORDS, 0)
        write_rows(folder / "rows.jsonl", method, 0, "cpu")
        found = {side: start(python, side, method, folder, options) for side, python in pythons.items()}
    mib = {side: one["peak_mib"] for side, one in found.items()}
    return {
        "benchmark": method,
        "parameters": found["agentrl"]["parameters"],
        **{f"{side}_mib": round(value) for side, value in mib.items()},
        "agentrl_over_trl": round(mib["agentrl"] / mib["trl"], 3),
        "agentrl_over_naive": round(mib["agentrl"] / mib["naive"], 3),
        "losses": {side: [round(loss, 4) for loss in one["losses"]] for side, one in found.items()},
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", choices=["sft", "dpo", *MEMORY])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that imports trl; by default this one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", choices=list(WORDS), default="cpu", help="memory_* are measured on a CPU alone")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        found = measure(options.side, options.methods[0], Path(options.out).parent, options.threads, options.device)
        Path(options.out).write_text(json.dumps(found))
        return
    if options.device == "cuda" and set(MEMORY) & set(options.methods):
        parser.error("memory_* read the process's memory, which a GPU's is not; leave --device out")
    pythons = {"agentrl": sys.executable, "trl": options.peer_python, "trl_lean": options.peer_python}
    for method in options.methods:
        memory = method in MEMORY
        both = pythons | ({"naive": sys.executable} if memory else {})
        print(json.dumps((compare_memory if memory else compare)(method, both, options)))


if __name__ == "__main__":
    main()
