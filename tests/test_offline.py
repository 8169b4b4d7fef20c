"""The offline loop: which examples a step trains, how long a run is, and that a resumed one goes on as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from example_fakes import Rows, supervised
from learner_fakes import make_learner, run_config, tiny_model
from test_run import Silent
from transformers import PreTrainedTokenizerFast

from agentrl.interrupt import Interrupt
from agentrl.offline_batches import ShuffledBatches, planned_steps
from agentrl.offline_run import OfflineRun, evaluated
from agentrl.run_folder import RunFolder, read_metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def where(examples):
    return [example.where for example in examples]


def batches_of(count, *, batch_size=4, seed=0, last=None):
    return ShuffledBatches(Rows(supervised(count)), batch_size=batch_size, seed=seed, last=last)


def test_every_example_is_trained_once_an_epoch():
    batches = batches_of(10, last=20)
    drawn = [name for step in range(5) for name in where(batches.take(step))]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(where(supervised(10)))
    assert drawn[:10] != drawn[10:]


def test_the_last_step_takes_what_is_left():
    batches = batches_of(10, last=10)
    assert [len(batches.take(step)) for step in range(3)] == [4, 4, 2]
    assert batches.epoch(2) == pytest.approx(0.8)


def test_a_step_is_a_function_of_the_seed_and_its_number():
    first, second = batches_of(10), batches_of(10)
    straight = [where(first.take(step)) for step in range(6)]
    assert where(second.take(5)) == straight[5]
    assert where(second.take(1)) == straight[1]
    assert where(batches_of(10, seed=1).take(0)) != straight[0]


def test_without_a_seed_examples_come_as_they_stand():
    batches = batches_of(6, seed=None)
    assert where(batches.take(1)) == ["row 4", "row 5", "row 0", "row 1"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (3, 10)),  # one epoch of 10 rows by 4
        ({"epochs": 3}, (8, 30)),
        ({"steps": 50}, (50, None)),
        ({"steps": 2, "epochs": 3}, (2, None)),
        ({"steps": 50, "epochs": 3}, (8, 30)),
    ],
)
def test_a_run_ends_after_its_epochs_or_steps(options, expected):
    config = run_config(batch_size=4).model_copy(update={"steps": None, **options})
    assert planned_steps(config, 10) == expected


def make_run(folder, model, *, steps=6, rows=10, **options):
    config = run_config(batch_size=4, checkpoint={"every": 2}, **options).model_copy(update={"steps": steps})
    run = OfflineRun(
        config=config,
        folder=RunFolder(folder),
        learner=make_learner(model, config, "sft"),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(model) if (folder / "tokenizer.json").exists() else None,
        batches=ShuffledBatches(Rows(supervised(rows)), batch_size=4, seed=0, last=None),
        held_out=Rows(supervised(5, seed=9)),
        counts={},
        progress=Silent(),
        interrupt=Interrupt(),
    )
    folder.mkdir(exist_ok=True)
    return run


def weights(learner):
    return {name: tensor.clone() for name, tensor in learner.named_weights()}


def test_a_resumed_run_ends_with_the_very_same_parameters(tmp_path, model):
    whole = make_run(tmp_path / "whole", model)
    whole.learn()
    first = make_run(tmp_path / "cut", model, steps=6)
    first.config = first.config.model_copy(update={"steps": 5})
    first.learn()
    second = make_run(tmp_path / "cut", model)
    second.learner.load(second.folder.latest_checkpoint())
    assert second.learner.step == 4  # the fifth step was not saved
    second.learn()
    expected = weights(whole.learner)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(second.learner).items())


def test_the_folder_tells_every_step_and_evaluation(tmp_path, model):
    run = make_run(tmp_path / "run", model, evaluation={"every": 3}, eval_dataset="unused")
    run.learn()
    steps = read_metrics(tmp_path / "run")
    assert [metrics["step"] for metrics in steps] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "epoch", "num_tokens", "tokens_per_s", "grad_norm", "learning_rate"} <= steps[-1].keys()
    assert steps[-1]["epoch"] == pytest.approx(2.4)
    lines = run.folder.evaluations_file.read_text().splitlines()
    assert len(lines) == 2
    assert "eval_loss" in lines[0]


def test_rows_that_were_left_out_are_counted_beside_every_step(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=2)
    run.counts = {"data/read": 13.0, "data/skipped": 3.0, "data/dropped_long": 0.0, "data/truncated": 1.0}
    run.learn()
    counted = [{name: one.get(name) for name in run.counts} for one in read_metrics(tmp_path / "run")]
    assert counted == 2 * [{"data/read": None, "data/skipped": 3.0, "data/dropped_long": 0.0, "data/truncated": 1.0}]


def test_a_signal_ends_the_run_at_the_next_step(tmp_path, model):
    run = make_run(tmp_path / "run", model)
    run.interrupt.requested = True
    assert run.learn()
    assert run.learner.step == 0


def test_an_evaluation_does_not_depend_on_how_it_is_cut_and_changes_nothing(model):
    rows = Rows(supervised(12, seed=3))
    learner = make_learner(model, run_config(), "sft")
    before = learner.fingerprint()
    whole = evaluated(learner, rows)["eval_loss"]
    fine = make_learner(model, run_config(learner={"tokens_per_micro_batch": 32}), "sft")
    assert evaluated(fine, rows)["eval_loss"] == pytest.approx(whole, rel=1e-6)
    assert learner.fingerprint() == before
    assert np.isfinite(whole)
