"""A whole run on two learner ranks, started as a user would."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentrl.run_folder import read_metrics


def train(folder, *changes, launcher=(), environment="arithmetic"):
    sets = [
        "steps=3",
        "group_size=4",
        "groups_per_step=4",
        "sampling.max_tokens=16",
        "max_staleness=0",
        "learner.threads=1",
        "learner.lr=1e-3",
    ]
    command = [sys.executable, *launcher, "-m", "agentrl", "train", "--env", environment, "--model", "quickstart", "--output", str(folder)]
    command += [part for change in [*sets, *changes] for part in ("--set", change)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250)


def trained(folder, *changes, launcher=()):
    done = train(folder, *changes, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_metrics(folder)


UNSCORABLE = '''
from agentrl import Environment


class Unscorable(Environment):
    """Has no score for anything."""

    def tasks(self, split):
        return [{"prompt": f"{number}+1="} for number in range(100)]

    def score(self, episode):
        return None
'''
LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_ranks_train_and_export_one_model(tmp_path, sharding):
    alone = trained(tmp_path / "alone")
    together = trained(tmp_path / "together", "learner.ranks=2", f"learner.sharding={sharding}", launcher=LAUNCHER)
    assert [one["step"] for one in together] == [1, 2, 3]
    assert together[0]["reward/mean"] == alone[0]["reward/mean"]
    assert together[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "together" / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "alone" / "model")
    for (name, mine), (_, theirs) in zip(model.named_parameters(), base.named_parameters(), strict=True):
        assert torch.isfinite(mine).all(), name
        assert mine.shape == theirs.shape


@pytest.mark.slow
def test_a_failure_that_rank_0_tells_is_told_once(tmp_path):
    (tmp_path / "unscorable.py").write_text(UNSCORABLE)
    done = train(tmp_path / "run", "learner.ranks=2", launcher=LAUNCHER, environment=f"{tmp_path / 'unscorable.py'}:Unscorable")
    told = [line for line in done.stderr.splitlines() if line.startswith(("agentrl:", "[rank"))]
    assert len(told) == 2, done.stderr[-5000:]
    assert any("could not be scored" in line for line in told)
    assert "agentrl: rank 1 ends because another learner process ended" in told
    assert done.stderr.count("exitcode  : 1 ") == 2, done.stderr[-5000:]  # of both, in the launcher's words
