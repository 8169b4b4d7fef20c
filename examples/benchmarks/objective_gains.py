"""What objectives teach the quickstart model: held-out reward before and after, with paired 95% intervals; one JSON line each.

    python examples/benchmarks/objective_gains.py
    python examples/benchmarks/objective_gains.py --objective ppo --objective nash_md --seeds 1

Each objective trains by its own run file in `examples/objectives/`. Held-out tasks share no pair of numbers with the training tasks; the
same ones are played before and after, as the policy samples in training. The control trains by the first objective with a learning rate
of 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quickstart_seeds import ROOT, agentrl

sys.path.append(str(ROOT / "examples"))

from paired_gain import summary

QUICKSTART = ROOT / "examples" / "quickstart.yaml"
RUN_FILES = ROOT / "examples" / "objectives"
OBJECTIVES = ("ppo", "online_dpo", "nash_md", "xpo")


def evaluate(model: str) -> dict[str, float]:
    """Mean reward of each held-out task."""
    result: dict[str, Any] = json.loads(agentrl("eval", str(QUICKSTART), "--model", model, "--json").strip().splitlines()[-1])
    return dict(result["task_means"])


def run(folder: Path, name: str, seed: int, before: dict[str, float], *changes: str) -> dict[str, float]:
    """Train by one objective and measure what it gained."""
    started = time.perf_counter()
    sets = [part for change in (f"seed={seed}", *changes) for part in ("--set", change)]
    agentrl("train", str(RUN_FILES / f"{name}.yaml"), "--output", str(folder), *sets)
    seconds = round(time.perf_counter() - started, 1)
    return summary(before, evaluate(str(folder / "model"))) | {"train_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", action="append", metavar="NAME", dest="objectives", help="a run file in examples/objectives")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    before = evaluate("quickstart")
    names = options.objectives or list(OBJECTIVES)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            for seed in range(options.seeds):
                result = run(Path(scratch) / f"{name}-{seed}", name, seed, before)
                print(json.dumps({"benchmark": "objective_gains", "objective": name, "seed": seed} | result), flush=True)
        control = run(Path(scratch) / "control", names[0], 0, before, "learner.lr=0")
        print(json.dumps({"benchmark": "objective_gains", "objective": names[0], "control": "learning rate 0"} | control), flush=True)


if __name__ == "__main__":
    main()
