"""Density ratios of prompts: the classifier against scikit-learn's, weights of rows, and what is kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agentrl.density_ratio import Classifier, fitted, weigh
from agentrl.errors import ConfigError
from agentrl.examples import Example, Text
from agentrl.objectives import DensityRatio

STORED = json.loads((Path(__file__).parent / "objectives" / "trl_preferences.json").read_text())
RATIO = DensityRatio(least=0.5, most=10.0, rows=1000)


class Rows(list):
    counts = {"data/rows": 0.0}  # noqa: RUF012
    fingerprint = "these"


def row(prompt, *, label, weight=None):
    ids = np.array([*prompt, 9], dtype=np.int32)
    text = Text(ids=ids, trained=np.arange(len(ids)) == len(ids) - 1, prompt_length=len(prompt))
    return Example(where="row", texts=(text,), rewards=(label,), parts={} if weight is None else {"weight": weight})


class FakeLearner:
    """Embeds a prompt as its mean id and its length."""

    def __init__(self):
        self.asked = 0
        self.accelerator = SimpleNamespace(wait_for_everyone=lambda: None, is_main_process=True)

    def embeddings_of(self, prompts):
        self.asked += len(prompts)
        return np.array([[float(np.mean(prompt)), float(len(prompt))] for prompt in prompts])


def skewed(count=60):
    """Good rows' prompts have larger ids, with some overlap."""
    draw = np.random.default_rng(0)
    labels = [float(place % 3 == 0) for place in range(count)]
    return Rows(row(draw.integers(2, 6, 3) + (2 if label else 0), label=label) for label in labels)


def test_the_classifier_is_that_of_scikit_learn():
    known = STORED["density"]
    found = fitted(np.array(known["embeddings"]), np.array(known["labels"]))
    assert found.weights == pytest.approx(known["weights"], abs=1e-6)
    assert found.bias == pytest.approx(known["bias"], abs=1e-6)


def test_ratios_are_trl_s_weights():
    entry = next(entry for entry in STORED["removed"] if entry["case"].get("weighed"))
    known = STORED["density"]
    chances = np.array(known["probabilities"])
    found = Classifier(weights=np.array(known["weights"]), bias=known["bias"]).ratios(np.array(entry["embeddings"]), 0.5, 10.0)
    assert found == pytest.approx(np.clip(chances / (1 - chances + 1e-8), 0.5, 10.0), rel=1e-6)
    assert len(set(np.round(found, 6))) > 2, "some lie between the bounds"


def test_the_number_of_rows_of_a_label_does_not_shift_the_boundary():
    draw = np.random.default_rng(1)
    good, bad = draw.normal(1, 1, (40, 2)), draw.normal(-1, 1, (40, 2))
    even = fitted(np.concatenate([good, bad]), np.arange(80) < 40)
    often = fitted(np.concatenate([good, np.tile(bad, (5, 1))]), np.arange(240) < 40)
    # Only the penalty counts less where there are more rows.
    assert often.bias == pytest.approx(even.bias, abs=0.2)
    assert often.weights == pytest.approx(even.weights, rel=0.35)


def test_bad_rows_weigh_by_their_prompts_and_good_ones_1(tmp_path):
    rows, learner = skewed(), FakeLearner()
    found = weigh({"train": rows}, RATIO, learner, tmp_path, seed=0)["train"]
    assert len(found) == len(rows)
    weights = np.array([found[place].parts["weight"] for place in range(len(found))])
    good = np.array([example.rewards[0] > 0.5 for example in rows])
    assert (weights[good] == 1).all()
    means = np.array([float(np.mean(example.texts[0].ids[:3])) for example in rows])
    order = np.argsort(means[~good], kind="stable")
    assert (np.diff(weights[~good][order]) >= -1e-9).all(), "the nearer to the good ones, the heavier"
    assert weights.min() == 0.5
    assert weights[~good].max() > 1
    assert found.fingerprint == rows.fingerprint


def test_a_weight_that_a_row_has_stays_a_factor(tmp_path):
    rows = skewed()
    rows[0] = row([7, 7, 7], label=1.0, weight=3.0)
    assert weigh({"train": rows}, RATIO, FakeLearner(), tmp_path, seed=0)["train"][0].parts["weight"] == 3.0


def test_weights_are_read_back_for_the_same_rows_alone(tmp_path):
    rows = skewed()
    first = weigh({"train": rows, "eval": rows}, RATIO, FakeLearner(), tmp_path, seed=0)
    again = FakeLearner()
    second = weigh({"train": rows, "eval": rows}, RATIO, again, tmp_path, seed=0)
    assert again.asked == 0
    for name in ("train", "eval"):
        assert [one.parts for one in map(first[name].__getitem__, range(9))] == [
            one.parts for one in map(second[name].__getitem__, range(9))
        ]
    other = skewed()
    other.fingerprint = "those"
    weigh({"train": other}, RATIO, again, tmp_path, seed=0)
    assert again.asked > 0


def test_few_rows_are_drawn_of_each_label(tmp_path):
    learner = FakeLearner()
    bad = sum(example.rewards[0] <= 0.5 for example in skewed())
    weigh({"train": skewed()}, DensityRatio(least=0.5, most=10.0, rows=4), learner, tmp_path, seed=0)
    assert learner.asked == 8 + bad


@pytest.mark.parametrize(("label", "kind"), [(1.0, "good"), (0.0, "bad")])
def test_rows_of_one_label_are_refused(label, kind, tmp_path):
    rows = Rows(row([3, 4], label=label) for _ in range(5))
    with pytest.raises(ConfigError, match=rf"all 5 rows of the dataset are {kind}: remove it, or give rows of both labels"):
        weigh({"train": rows}, RATIO, FakeLearner(), tmp_path, seed=0)
