"""Values, gradients and metrics against TRL 1.16, stored in `trl_reference.json` by `trl_parity.py`.

Where we differ from TRL on purpose, the comparison is with the paper instead (`test_advantages.py`): TRL's statistics are float32,
so that seven rewards of 0.95 get advantages of 6e-4 where ours are 0; and its `kl` of RLOO is a mean over tokens where ours is the
penalized sum of a rollout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agentrl.objectives import GroupSignals, get, validate

HERE = Path(__file__).parent
STORED = json.loads((HERE / "trl_reference.json").read_text())
INPUTS = STORED["inputs"]
NORMALIZATIONS = {"grpo": "sequence_mean", "dapo": "token_mean", "bnpo": "token_mean", "dr_grpo": "constant"}
RENAMED = {"epsilon": "clip_low", "epsilon_high": "clip_high", "use_bias_correction_kl": "kl_correction"}
SHARED = {"delta", "beta", "scale_rewards", "normalize_advantages"}


def options_of(case):
    """Our options for a TRL case."""
    options = {"name": case["trainer"], "beta": 0.0}
    options |= {RENAMED[key]: value for key, value in case.items() if key in RENAMED}
    options |= {key: value for key, value in case.items() if key in SHARED}
    if "loss_type" in case:
        options["normalization"] = NORMALIZATIONS[case["loss_type"]]
    return validate(options)


def label(entry):
    return "-".join(str(value) for key, value in entry["case"].items() if key != "rewards")


@pytest.mark.parametrize("entry", STORED["advantages"], ids=label)
def test_advantages(entry):
    case, config = entry["case"], options_of(entry["case"])
    kl = [sum(now) - sum(reference) for now, reference in zip(INPUTS["sampler"], INPUTS["reference"], strict=True)]
    groups, scorable = [], []
    size = STORED["group_size"]
    for start in range(0, len(kl), size):
        members = [index for index in range(start, start + size) if case["rewards"][index] is not None]
        rewards, penalties = [case["rewards"][index] for index in members], [kl[index] for index in members]
        groups.append(GroupSignals(rewards=np.array(rewards), reference_kl=np.array(penalties)))
        scorable += members
    ours = np.concatenate(get(case["trainer"]).advantages(groups, config))
    theirs = np.array(entry["advantages"])
    assert ours == pytest.approx(theirs[scorable], rel=2e-5, abs=2e-6)
    assert not np.delete(theirs, scorable).any()  # TRL keeps unscorable rows, with advantage 0


@pytest.mark.parametrize("entry", STORED["losses"], ids=label)
def test_loss_gradient_and_metrics(entry, batch_of, reduced):
    config, objective = options_of(entry["case"]), get(entry["case"]["trainer"])
    tables = [torch.tensor(table, dtype=torch.float64, requires_grad=True) for table in INPUTS["logits"]]
    ids = [torch.tensor(row)[:, None] for row in INPUTS["ids"]]
    now = [table.log_softmax(-1).gather(-1, row)[:, 0] for table, row in zip(tables, ids, strict=True)]
    batch = batch_of(now, INPUTS["sampler"], INPUTS["advantages"], INPUTS["reference"])
    losses = objective.loss(batch, config)
    loss = reduced(losses, [len(row) for row in ids], objective.normalization(config), STORED["max_tokens"])
    assert loss.item() == pytest.approx(entry["loss"], rel=1e-12)
    for got, expected in zip(torch.autograd.grad(loss, tables), entry["gradient"], strict=True):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-14)
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "kl"):
        if name in entry["metrics"]:
            assert (losses.metrics | losses.token_metrics)[name].mean().item() == pytest.approx(entry["metrics"][name], rel=1e-6), name
    assert entry["metrics"]["clip_ratio/region_mean"] > 0


def trl_python():
    named = os.environ.get("AGENTRL_TRL_PYTHON")
    return named or (sys.executable if importlib.util.find_spec("trl") else None)


@pytest.mark.trl
@pytest.mark.skipif(trl_python() is None, reason="TRL is not installed here; set AGENTRL_TRL_PYTHON to a Python that has it")
def test_stored_values_are_what_trl_gives(tmp_path):
    path = tmp_path / "now.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [trl_python(), str(HERE / "trl_parity.py"), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    now = json.loads(path.read_text())
    assert numbers(now["inputs"]) == pytest.approx(numbers(STORED["inputs"]), rel=1e-12)
    assert [entry["case"] for entry in now["losses"]] == [entry["case"] for entry in STORED["losses"]]
    assert numbers(now["losses"]) == pytest.approx(numbers(STORED["losses"]), rel=1e-6, abs=1e-12)
    assert numbers(now["advantages"]) == pytest.approx(numbers(STORED["advantages"]), rel=1e-5, abs=1e-6)


def numbers(value):
    """Every number of a JSON value, in order."""
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float(value)] if isinstance(value, int | float) else []
