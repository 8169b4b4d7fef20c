"""SFT and DPO of Gemma 3 270M on HumanEval's functions, with figures of held-out problems before and after; prints a table.

    python examples/gemma/prepare.py models/gemma-3-270m
    python examples/gemma/sft_dpo.py

Trains by `sft.yaml` and `dpo.yaml` beside this script. Figures: `loss`, nats a token of held-out solutions; `prefers`, the share of
held-out pairs in which the model finds the right solution likelier than the one with a slip, whatever the reference thinks of them;
`rewards`, the share in which DPO moved the right one up relative to the other. Peak memory is that of the learner's process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FREE = {"objective.reference_free": "true", "learner.lr": "0", "steps": "1", "batch_size": "1"}
"""What makes a run of `dpo.yaml` a measurement of its model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a run gave."""

    model: str
    steps: int
    seconds: float
    peak_mib: float
    held_out: dict[str, float]


def train(file: str, folder: Path, **changes: str) -> Done:
    """Train by a run file, in a process whose memory is watched."""
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    started = time.perf_counter()
    command = [sys.executable, "-m", "agentrl", "train", str(HERE / f"{file}.yaml"), "--output", str(folder), *sets]
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    last, held_out = (json.loads((folder / name).read_text().splitlines()[-1]) for name in ("metrics.jsonl", "evaluations.jsonl"))
    seconds, peak_mib = time.perf_counter() - started, usage.ru_maxrss / 1024
    return Done(model=str(folder / "model"), steps=last["step"], seconds=seconds, peak_mib=peak_mib, held_out=held_out)


def row(stage: str, done: Done, **figures: float) -> str:
    """A line of the table."""
    shown = [f"{figures[name]:.3f}" if name in figures else "" for name in ("loss", "prefers", "rewards")]
    return "| " + " | ".join([stage, str(done.steps), f"{done.seconds / 60:.1f}", f"{done.peak_mib:.0f}", *shown]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/gemma-3-270m")
    parser.add_argument("--folder", type=Path, default=Path("runs/gemma-code"), help="for data and runs")
    parser.add_argument("--steps", help="most steps of each stage; by default as the run files say")
    parser.add_argument("--held-out", type=int, help="held-out problems; all by default")
    options = parser.parse_args()
    folder, data = options.folder, options.folder / "data"
    if not data.exists():
        subprocess.run([sys.executable, str(HERE / "code_rows.py"), str(data)], stdout=sys.stderr, check=True)
    limit: dict[str, str] = {} if options.steps is None else {"steps": options.steps}
    files: dict[str, dict[str, str]] = {}
    for name in ("sft", "dpo"):
        held_out = data / f"{name}-eval.jsonl"
        if options.held_out is not None:
            lines = held_out.read_text().splitlines(keepends=True)[: options.held_out]
            held_out = data / f"{name}-eval-{options.held_out}.jsonl"
            held_out.write_text("".join(lines))
        files[name] = {"dataset": str(data / f"{name}-train.jsonl"), "eval_dataset": str(held_out)}
    print("| | steps | minutes | peak MiB | loss | prefers | rewards |\n|---|---|---|---|---|---|---|", flush=True)

    def measured(name: str, model: str) -> Any:
        return train("dpo", folder / f"measured-{name}", model=model, **files["dpo"], **FREE).held_out["eval_rewards/accuracies"]

    still = {"learner.lr": "0", "steps": "1", "batch_size": "1"}
    base = train("sft", folder / "base", model=options.model, **files["sft"], **still)
    print(row("base model, learning rate 0", base, loss=base.held_out["eval_loss"], prefers=measured("base", options.model)), flush=True)
    sft = train("sft", folder / "sft", model=options.model, **files["sft"], **limit)
    print(row("after SFT", sft, loss=sft.held_out["eval_loss"], prefers=measured("sft", sft.model)), flush=True)
    dpo = train("dpo", folder / "dpo", model=sft.model, **files["dpo"], **limit)
    shares = {"prefers": measured("dpo", dpo.model), "rewards": dpo.held_out["eval_rewards/accuracies"]}
    print(row("after DPO", dpo, **shares), flush=True)


if __name__ == "__main__":
    main()
