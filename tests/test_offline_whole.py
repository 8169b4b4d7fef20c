"""Whole offline runs, started as a user would: early stopping, the best weights, the card and the push, on one rank and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from http_serving import serving
from hub_stand_in import TOKEN, HubStandIn, environment
from transformers import AutoModelForCausalLM

from agentrl.run_folder import read_evaluations, read_metrics

pytestmark = pytest.mark.slow

LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
RUN = {
    "batch_size": 16,
    "steps": 24,
    "learner.lr": 0.02,  # too high: evaluations get worse again
    "learner.threads": 1,
    "data.eval_rows": 20,
    "sampling.max_tokens": 6,
    "checkpoint.every": 100,
    "evaluation.every": 4,
    "evaluation.patience": 2,
    "evaluation.keep_best": "true",
    "evaluation.samples": 1,
}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for first in range(10, 40):
            for second in range(11, 16):
                question, answer = f"What is {first}+{second}?", f"{{{first + second}}}"
                row = {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}
                file.write(json.dumps(row) + "\n")
    return path


def train(rows, folder, *, launcher=(), variables=None, **changes):
    sets = [part for key, value in (RUN | changes).items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, *launcher, "-m", "agentrl", "train", "--model", "quickstart", "--objective", "sft", "--dataset", str(rows)]
    done = subprocess.run(
        [*command, "--output", str(folder), *sets],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, **(variables or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(folder):
    return {one["step"]: one["eval_loss"] for one in read_evaluations(folder)}


def test_two_ranks_stop_and_go_back_as_one_does(tmp_path, rows):
    train(rows, tmp_path / "alone")
    said = train(rows, tmp_path / "together", launcher=LAUNCHER, **{"learner.ranks": 2})
    alone, together = losses(tmp_path / "alone"), losses(tmp_path / "together")
    best = min(together, key=together.get)
    assert list(together) == list(alone)
    assert together == pytest.approx(alone, rel=0.02)
    assert f"best eval_loss {together[best]:.4g} at step {best}; its weights are" in said
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("alone", "together")]
    assert all(torch.allclose(tensor, models[1][name], atol=0.02) for name, tensor in models[0].items())


def test_a_run_leaves_its_model_with_a_card_and_pushes_both(tmp_path, rows):
    stand_in = HubStandIn()
    with serving(stand_in.app()) as url:
        hub = {"hub.repo": "me/mine", "hub.token_env": "A_TOKEN", "hub.every": 10}
        said = train(rows, tmp_path / "run", variables=environment(url), **hub | {"learner.lr": 1e-3, "steps": 12})
    assert stand_in.messages == ["agentrl: step 10", "agentrl: step 12"]
    model, there = tmp_path / "run" / "model", stand_in.repos["me/mine"]
    assert there == {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    card = there["README.md"].decode()
    assert "- schema of its rows: conversational prompt_completion" in card
    assert "- trained tokens: " in card
    assert TOKEN not in said
    assert not any(TOKEN.encode() in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert read_metrics(tmp_path / "run")[-1]["step"] == 12


def test_a_hub_that_fails_costs_a_run_nothing(tmp_path, rows):
    stand_in = HubStandIn(refuse={"commit": 500})
    with serving(stand_in.app()) as url:
        hub = {"hub.repo": "me/mine", "hub.token_env": "A_TOKEN"}
        said = train(rows, tmp_path / "run", variables=environment(url), **hub | {"steps": 4})
    assert "me/mine was not pushed: the Hub fails at the moment, status 500" in said
    assert f"agentrl push {tmp_path / 'run'} --repo me/mine" in said
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
