"""The quickstart over seeds, with held-out tasks before and after and two controls; prints one JSON line.

    python examples/benchmarks/quickstart_seeds.py
    python examples/benchmarks/quickstart_seeds.py --set engine.kind=vllm

Every training run takes each `--set`; held-out tasks are played with the embedded engine. Controls: the learning rate at 0, and rewards
shuffled among the completions of each group. Neither may learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN_FILE = ROOT / "examples" / "quickstart.yaml"
CONTROLS = {
    "lr_0": ["learner.lr=0"],
    "shuffled_rewards": [f'imports=["{ROOT / "examples" / "shuffled_rewards.py"}"]', "objective.name=grpo_shuffled"],
}


def agentrl(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "agentrl", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def evaluate(model: str) -> float:
    """Mean reward on all held-out tasks, as the policy samples in training."""
    result: dict[str, Any] = json.loads(agentrl("eval", str(RUN_FILE), "--model", model, "--json").strip().splitlines()[-1])
    return float(result["mean"])


def run(folder: Path, *changes: str) -> dict[str, float]:
    """Train, and say how it began, ended and did on held-out tasks."""
    started = time.perf_counter()
    agentrl("train", str(RUN_FILE), "--output", str(folder), *(part for change in changes for part in ("--set", change)))
    seconds = time.perf_counter() - started
    rewards = [json.loads(line)["reward/mean"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "first_3_steps": round(statistics.mean(rewards[:3]), 3),
        "last_tenth": round(statistics.mean(rewards[-max(1, len(rewards) // 10) :]), 3),
        "held_out": round(evaluate(str(folder / "model")), 3),
        "train_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-controls", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="for every training run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        result: dict[str, Any] = {"benchmark": "quickstart_seeds", "held_out_before": round(evaluate("quickstart"), 3)}
        for seed in range(options.seeds):
            result[f"seed_{seed}"] = run(scratch / f"seed-{seed}", f"seed={seed}", *options.changes)
        for control, changes in CONTROLS.items():
            if not options.no_controls:
                result[control] = run(scratch / control, *changes, *options.changes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
