"""Steps on a dataset's rows by two ranks, whatever the policy's head gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dataset_rows
import learner_fakes as fakes
import pytest
import torch

from agentrl import objectives
from agentrl.learner.loading import load_policy

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTIVES: dict[str, dict[str, Any]] = {
    "texts": {"name": "sft"},
    "pairs": {"name": "dpo", "beta": 0.3},
    "noise": {"name": "sft", "neftune_alpha": 5.0},
    "score": {"name": "reward_model", "center_coefficient": 0.1},
    "labels": {"name": "process_reward_model"},
}
STEPS = [7, 1, 5]
"""Rows of each step: one leaves a rank without any."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "options"), [("ddp", {}), ("ddp", {"lora": {"rank": 4}}), ("fsdp2", {}), ("fsdp2", {"lora": {"rank": 4}})]
)
def test_two_ranks_do_what_one_does(sharding: str, options: dict[str, Any], model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder, learner = model_folder(kind="starcoder2"), {"lr": 1e-3, "max_grad_norm": None, **options}
    settings = learner | {"sharding": sharding, "ranks": 2, "tokens_per_micro_batch": 30}
    plan = {"model": folder, "objectives": OBJECTIVES, "steps": STEPS, "config": {"learner": settings}, "out": str(tmp_path)}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).parent / "two_ranks_rows.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        str(tmp_path / "plan.json"),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for title, objective in OBJECTIVES.items():
        rows = dataset_rows.make_examples(objectives.get(objective["name"]).data)
        alone = fakes.make_learner(folder, fakes.run_config(learner=learner), objective, master_dtype=torch.float64)
        metrics = [*(alone.update_examples(rows[:count]) for count in STEPS), alone.evaluate_examples(rows)]
        output = objectives.get(objective["name"]).needs(objectives.validate(objective)).output
        saved = load_policy(
            fakes.run_config(), str(tmp_path / title / "model"), torch.device("cpu"), master=torch.float64, trained=False, output=output
        )
        own, exported = dict(alone.whole_weights()), saved.base.state_dict()
        assert max(float((own[name] - exported[name]).abs().max()) for name in own) < 1e-6, "files hold float32 or better"
        alone.update_examples(rows)
        for rank in ranks:
            found = rank[title]
            assert found["resumed_equal"]
            assert fakes.distance(found["weights"], dict(alone.named_weights())) < 1e-6
            for step, (mine, theirs) in enumerate(zip(found["metrics"], metrics, strict=True)):
                # policy and reference are one at the first step: each margin is 0, and its sign is rounding's
                signs = {"rewards/accuracies"} if step == 0 else set()
                for name in mine.keys() - {"learner/computed_tokens", "learner/micro_batches"} - signs:
                    assert name.startswith("time/") or mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), name
