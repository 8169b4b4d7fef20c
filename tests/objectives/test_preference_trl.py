"""Metrics of the preference objectives against TRL's, and the stored values against TRL; loss and gradient are rows of the report."""

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
from report_ours import Scores, batch_of, prepare
from report_preferences import entries, step_of, stored, translated

HERE = Path(__file__).parent
OF_PROMPTS_TOO = {"logits/chosen", "logits/rejected"}
"""CPO and ORPO average logits over prompts and padding too."""
OF_THE_LEARNER = {"entropy", "delta"}


def metrics_of(options, step):
    """Means of what the objective reports, as the learner takes them."""
    prepared = prepare(options, step)
    batch, _, _ = batch_of(prepared, Scores.of(step))
    losses = prepared.objective.loss(batch, prepared.config)
    found = {name: values.detach().double().mean().item() for name, values in losses.metrics.items()}
    return found | {name: values.detach().double().nanmean().item() for name, values in losses.some_metrics.items()}


def names_of(entry):
    name = (
        {"simpo": "cpo", "alphapo": "alphapo"}.get(entry["case"].get("loss_type"), entry["kind"])
        if entry["kind"] == "cpo"
        else entry["kind"]
    )
    left_out = OF_THE_LEARNER | (OF_PROMPTS_TOO if entry["kind"] in ("cpo", "orpo") else set())
    # TRL's likelihood of ORPO has prompts in it; without a weight CPO's is not computed, and there is no BCO here.
    if entry["kind"] == "orpo" or entry["case"].get("cpo_alpha") == 0:
        left_out.add("nll_loss")
    return name, {key: value for key, value in entry["metrics"].items() if key not in left_out}


@pytest.mark.parametrize(
    "entry", stored()["preferences"], ids=lambda entry: f"{entry['kind']}-{'-'.join(map(str, entry['case'].values()))}"
)
def test_metrics_have_the_names_and_values_of_trl(entry):
    name, expected = names_of(entry)
    found = metrics_of(translated(entry, name), step_of(entry))
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-7), key
    assert len(expected) >= 5


def test_metrics_of_bco_are_those_of_trl():
    for entry in stored()["removed"]:
        found = metrics_of({"name": "bco", "beta": entry["case"]["beta"]}, step_of(entry))
        said = entry["steps"][0]["metrics"]
        for kind in ("chosen", "rejected"):
            for figure in ("rewards", "logps"):
                assert found[f"{figure}/{kind}"] == pytest.approx(said[f"{figure}/{kind}_sum"] / said[f"count/{kind}"], rel=1e-6)
        assert found["rewards/margins"] == pytest.approx(found["rewards/chosen"] - found["rewards/rejected"], rel=1e-9)
        # TRL's running mean after a first batch is that batch's.
        assert found["rewards/mean"] == pytest.approx(said["delta"], rel=1e-6)


def test_where_trl_smooths_no_label_it_differs_from_ours():
    (plain, *_) = entries("dpo", loss_type="sigmoid", beta=1.0)
    ours = metrics_of({"name": "dpo", "beta": 1.0}, step_of(plain))
    smoothed = metrics_of({"name": "dpo", "beta": 1.0, "label_smoothing": 0.2}, step_of(plain))
    assert ours == smoothed, "metrics are of rewards, not of the loss"


def trl_python():
    named = os.environ.get("AGENTRL_TRL_PYTHON")
    return named or (sys.executable if importlib.util.find_spec("trl") else None)


@pytest.mark.trl
@pytest.mark.skipif(trl_python() is None, reason="TRL is not installed here; set AGENTRL_TRL_PYTHON to a Python that has it")
def test_stored_values_are_what_trl_gives(tmp_path):
    path = tmp_path / "now.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [trl_python(), str(HERE / "trl_preferences.py"), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    now = json.loads(path.read_text())
    before = stored()["preferences"]
    assert [(one["kind"], one["case"]) for one in now["preferences"]] == [(one["kind"], one["case"]) for one in before]
    for one, other in zip(now["preferences"], before, strict=True):
        bound = 1e-5 if other.get("single") else 1e-6
        assert one["loss"] == pytest.approx(other["loss"], rel=bound)
        flat, stored_flat = (np.concatenate([np.ravel(table) for table in each["gradient"]]) for each in (one, other))
        assert flat == pytest.approx(stored_flat, rel=bound, abs=bound)
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-5, abs=1e-6)


def test_the_table_is_in_float64():
    assert all(leaf.dtype == torch.float64 for leaf in Scores.of(step_of(stored()["preferences"][0])).now)
