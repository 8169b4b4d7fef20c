"""The same runs in the real asynchronous loop: `agentrl train` with the engine in a process of its own, then `agentrl eval`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lagged import Setting

ROOT = Path(__file__).resolve().parents[2]
RUN_FILE = ROOT / "examples" / "quickstart.yaml"


def agentrl(*arguments: str) -> str:
    """The output of an agentrl command; ends the study with what it said where it fails."""
    done = subprocess.run([sys.executable, "-m", "agentrl", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"agentrl {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr}")
    return done.stdout


def train(objective: dict[str, Any], staleness: int, seed: int, setting: Setting) -> dict[str, Any]:
    """One run of the quickstart's run file with the study's settings; what it measured, in the form of `lagged.train`."""
    from lagged import figures

    changes = {
        "objective": objective,
        "imports": [str(ROOT / "examples" / "lag_study" / "uncorrected.py")],
        "seed": seed,
        "max_staleness": staleness,
        "steps": setting.steps,
        "groups_per_step": setting.groups_per_step,
        "group_size": setting.group_size,
        "sampling.max_tokens": setting.max_tokens,
        "learner.lr": setting.lr,
        "learner.schedule": "constant",
        "learner.warmup_steps": setting.warmup_steps,
        "learner.threads": 1,
        "engine.threads": 1,
        "checkpoint.every": setting.steps,
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        started = time.perf_counter()
        agentrl("train", str(RUN_FILE), "--output", str(folder), *sets)
        seconds = time.perf_counter() - started
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        said = agentrl(
            "eval", str(RUN_FILE), "--model", str(folder / "model"), "--set", f"sampling.max_tokens={setting.max_tokens}", "--json"
        )
        held_out = float(json.loads(said.strip().splitlines()[-1])["mean"])
    staleness_means = [one["staleness/mean"] for one in metrics if "staleness/mean" in one]
    return {
        "held_out": {str(setting.steps): round(held_out, 4)},
        "reward": [round(one["reward/mean"], 4) for one in metrics],
        "figures": figures(metrics) | {"staleness": round(float(np.mean(staleness_means)), 2)},
        "seconds": round(seconds, 1),
    }
