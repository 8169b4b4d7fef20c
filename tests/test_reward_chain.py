"""A reward model's whole way by the command line: trained on pairs, then the reward of an online run, whose rollouts are then imitated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.run_folder import RunFolder, read_metrics

PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"{first} + {second} ="}],
        "chosen": [{"role": "assistant", "content": str(first + second)}],
        "rejected": [{"role": "assistant", "content": f"{first + second + 1} is it"}],
    }
    for first in range(2, 8)
    for second in range(2, 8)
]
REWARD = """
model: quickstart
dataset: pairs.jsonl
objective: reward_model
batch_size: 12
data: {eval_rows: 6}
learner: {lr: 1.0e-3, threads: 1}
output: reward
"""
ONLINE = """
model: quickstart
dataset: prompts.jsonl
rewards: ['agentrl.rewards.reward_model:reward_model?model=reward/model']
objective: grpo
steps: 2
group_size: 4
groups_per_step: 2
sampling: {max_tokens: 16}
output: online
"""
IMITATION = """
model: quickstart
dataset: rollouts:online?min_reward=-100
objective: sft
batch_size: 8
output: imitation
"""


def train(folder, name, text):
    """Run it to its end; returns the metrics of its steps."""
    (folder / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-m", "agentrl", "train", f"{name}.yaml"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_metrics(RunFolder(folder / name).path)


@pytest.mark.slow
def test_a_reward_model_is_trained_and_rewards_a_run_whose_rollouts_are_imitated(tmp_path):
    lines = {"pairs": PAIRS, "prompts": [{"prompt": row["prompt"]} for row in PAIRS[:6]]}
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned = train(tmp_path, "reward", REWARD)
    assert learned[-1]["loss"] < learned[0]["loss"]
    assert {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens"} <= learned[-1].keys()
    played = train(tmp_path, "online", ONLINE)
    assert len(played) == 2
    assert all(step["mask/unscorable"] == 0 for step in played)
    imitated = train(tmp_path, "imitation", IMITATION)
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} <= imitated[-1].keys()
