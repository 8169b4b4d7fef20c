"""agentrl against TRL on the work of `bench_model.py`, one after the other in one run; prints one JSON line.

    python examples/benchmarks/against_trl.py --mode fixed --peer-python .venv-trl/bin/python
    python examples/benchmarks/against_trl.py --mode ragged --peer-python .venv-trl/bin/python

Both get the same model, prompts, group size, lengths, float32 and cores, beta 0 and one update a batch; agentrl runs with
`max_staleness: 1`. Completions a second are taken over whole steps after the first ones. In mode `fixed` the overlap ceiling is measured
too: one bare loop that only generates and one that only trains, pinned to a core each. Sides take turns (`--rounds`), and each side's
median counts. Without `--peer-python` this Python has to have TRL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_model import GROUP_SIZE, GROUPS_PER_STEP, make_model

HERE = Path(__file__).parent
SKIPPED = 3
"""Steps that are not counted: the pipeline fills."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["fixed", "ragged"], default="fixed")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has trl 1.16")
    parser.add_argument("--steps", type=int, default=16, help="of agentrl; TRL takes half as many")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def run_agentrl(options: argparse.Namespace, scratch: Path, number: int) -> float:
    """Completions a second of a whole `agentrl train`, from its own metrics."""
    folder = scratch / f"run-{number}"
    sets = {
        "steps": options.steps,
        "group_size": GROUP_SIZE,
        "groups_per_step": GROUPS_PER_STEP,
        "max_staleness": 1,
        "sampling.max_tokens": 512,
        "engine.slots": 2 * GROUP_SIZE * GROUPS_PER_STEP,
        "learner.lr": 1e-6,
        "checkpoint.every": 1000,
    }
    command = [
        sys.executable,
        "-m",
        "agentrl",
        "train",
        "--env",
        f"{HERE / 'bench_env.py'}:Bench?mode={options.mode}",
        "--model",
        str(scratch / "model"),
    ]
    command += ["--output", str(folder)] + [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steady = metrics[SKIPPED:]
    return GROUP_SIZE * GROUPS_PER_STEP * len(steady) / sum(one["time/step_s"] for one in steady)


def run_json(command: list[str]) -> dict[str, Any]:
    """The last line of another benchmark."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    options = arguments()
    ours: list[float] = []
    theirs: list[float] = []
    ceilings: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_model(scratch / "model")
        model = str(scratch / "model")
        for number in range(options.rounds):
            ours.append(run_agentrl(options, scratch, number))
            peer = [
                options.peer_python,
                "trl_baseline.py",
                "--mode",
                options.mode,
                "--model",
                model,
                "--steps",
                str(max(4, options.steps // 2)),
            ]
            theirs.append(run_json(peer)["completions_per_s"])
            if options.mode == "fixed":
                ceilings.append(run_json([sys.executable, "bare_loops.py", "--seconds", "15"])["overlap_ceiling"])
    agentrl, trl = statistics.median(ours), statistics.median(theirs)
    result: dict[str, Any] = {
        "benchmark": "against_trl",
        "mode": options.mode,
        "agentrl_completions_per_s": round(agentrl, 1),
        "trl_completions_per_s": round(trl, 1),
        "ratio": round(agentrl / trl, 2),
        "rounds": {"agentrl": [round(one, 1) for one in ours], "trl": [round(one, 1) for one in theirs]},
    }
    if ceilings:
        ceiling = statistics.median(ceilings)
        result |= {"overlap_ceiling_completions_per_s": round(ceiling, 1), "share_of_ceiling": round(agentrl / ceiling, 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
