"""Whole runs on a GPU, each started as a user would: offline with a kill between, online with the embedded engine, under a launcher."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from gpu_fakes import GPU, flat, gap
from safetensors.torch import load_file

from agentrl import runfile
from agentrl.run_folder import read_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.gpu

TESTS = Path(__file__).parents[1]
WORDS = ["red", "green", "blue", "one", "two", "three", "north", "south"]


def text(draw: random.Random, longest: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))


def write_rows(folder: Path, name: str) -> Path:
    draw, path = random.Random(0), folder / f"{name}.jsonl"
    keys = ("completion",) if name == "sft" else ("chosen", "rejected")
    rows = [{"prompt": text(draw, 9)} | {key: " " + text(draw, 30) for key in keys} for _ in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(*command: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False)
    assert fails or done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done


def run_file(folder: Path, objective: str, rows: Path, dtype: str, name: str) -> Path:
    values = {
        "model": "quickstart",
        "objective": objective,
        "dataset": str(rows),
        "output": str(folder / name),
        "epochs": 3,
        "batch_size": 4,
        "checkpoint": {"every": 3},
        "learner": {"device": GPU, "dtype": dtype, "lr": 1e-3, "schedule": "cosine", "warmup_steps": 2},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    runfile.load(path)
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_killed_run_ends_as_one_that_was_not(objective: str, dtype: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, objective)
    whole, cut = (run_file(tmp_path, objective, rows, dtype, name) for name in ("whole", "cut"))
    start("-m", "agentrl", "train", str(whole))
    killed = start(str(TESTS / "killed_run.py"), str(cut), "8", "0.0", fails=True)
    assert killed.returncode == -signal.SIGKILL
    start("-m", "agentrl", "train", "--resume", str(tmp_path / "cut"))
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    same = all(torch.equal(one, found[name]) for name, one in expected.items())
    distance = gap(flat(found), flat(expected))
    print(f"resumed {objective} {dtype}: bit for bit {same}, distance {distance:.3g}")
    losses = [[one["loss"] for one in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert len(losses[0]) == len(losses[1]) == 18
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0]
    assert distance < 1e-3


@pytest.mark.parametrize(("dtype", "mean", "most"), [("bfloat16", 0.03, 0.5), ("float32", 1e-5, 1e-3)])
def test_engine_and_learner_agree_online(dtype: str, mean: float, most: float, tmp_path: Path) -> None:
    """On the log-probs of what was sampled by the very weights that are trained."""
    sets = ["steps=4", "groups_per_step=8", "group_size=4", "max_staleness=0", "sampling.max_tokens=8", "learner.lr=1e-4"]
    sets += [f"learner.dtype={dtype}", f"engine.dtype={dtype}", f"learner.device={GPU}", f"engine.device={GPU}"]
    command = ["-m", "agentrl", "train", "--env", "arithmetic", "--model", "quickstart", "--output", str(tmp_path / "run")]
    start(*command, *(part for one in sets for part in ("--set", one)))
    metrics = read_metrics(tmp_path / "run")
    name = "sampling/sampling_logp_difference"
    means, highest = ([one[f"{name}/{kind}"] for one in metrics] for kind in ("mean", "max"))
    print(f"online {dtype}: log-probs differ by {max(means):.3g} on average and {max(highest):.3g} at most")
    assert len(metrics) == 4
    assert max(means) < mean
    assert max(highest) < most


def test_one_rank_of_shards_is_the_model_alone(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(hidden_size=128, intermediate_size=256, head_dim=32, scale=0.05)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = start(*launcher, str(TESTS / "gpu" / "one_rank.py"), folder, str(tmp_path / "checkpoint"))
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
    print(f"one rank: {result}")
    assert result["backend"] in ("nccl", "cpu:gloo,cuda:nccl")
    assert result["losses"]["fsdp"] == pytest.approx(result["losses"]["alone"], rel=0.01)
    assert result["losses"]["ddp"] == pytest.approx(result["losses"]["alone"], rel=1e-3)
    assert min(result["cosines"].values()) > 0.99
    assert result["restored"]
    assert result["said"] == [1.5]


def test_a_launched_run_trains(tmp_path: Path) -> None:
    path = run_file(tmp_path, "sft", write_rows(tmp_path, "sft"), "bfloat16", "run")
    start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "agentrl", "train", str(path))
    assert len(read_metrics(tmp_path / "run")) == 18
