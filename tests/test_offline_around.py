"""What an offline run does beside its steps: chooses, stops early, goes back to the best, answers, writes a card and pushes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from example_fakes import Rows, supervised
from http_serving import serving
from hub_stand_in import HubStandIn, environment
from learner_fakes import make_learner, run_config, tiny_model
from test_run import Silent
from test_text_samples import Letters

from agentrl import hub
from agentrl.config_data import HubConfig
from agentrl.errors import ConfigError
from agentrl.interrupt import Interrupt
from agentrl.offline_batches import ShuffledBatches
from agentrl.offline_run import OfflineRun, evaluated
from agentrl.run_folder import RunFolder, RunState, read_evaluations, read_metrics
from agentrl.selection import resumed, selection
from agentrl.text_samples import openings

HELD_OUT = Rows(supervised(5, seed=9))


class Told(Silent):
    """Keeps what was said."""

    def __init__(self):
        self.said, self.steps = [], []

    def message(self, text):
        self.said.append(text)

    def step(self, metrics):
        self.steps.append(dict(metrics))


class NoTokenizer(Letters):
    def save_pretrained(self, folder):
        (folder / "tokenizer.txt").write_text("letters")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def make_run(path, model, *, steps=6, lr=1e-3, every=2, checkpoint=100, keep=1, patience=None, keep_best=False, samples=0):
    config = run_config(
        batch_size=4,
        learner={"lr": lr},
        eval_dataset="unused",
        checkpoint={"every": checkpoint, "keep": keep},
        evaluation={"every": every, "patience": patience, "keep_best": keep_best, "samples": samples},
        sampling={"max_tokens": 4},
        objective="sft",
    ).model_copy(update={"steps": steps})
    path.mkdir(exist_ok=True)
    run = OfflineRun(
        config=config,
        folder=RunFolder(path),
        learner=make_learner(model, config, "sft"),
        tokenizer=NoTokenizer(),
        batches=ShuffledBatches(Rows(supervised(10)), batch_size=4, seed=0, last=None),
        held_out=HELD_OUT,
        counts={"data/rows": 10.0},
        progress=Told(),
        interrupt=Interrupt(),
    )
    run.selection = selection("eval_loss", None, patience)
    run.prompts = openings(HELD_OUT, samples)
    return run


def test_a_run_stops_early_and_goes_back_to_its_best_weights(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=40, lr=0.3, patience=3, keep_best=True)  # a rate that makes it worse
    assert not run.learn()
    losses = {one["step"]: one["eval_loss"] for one in read_evaluations(tmp_path / "run")}
    best = min(losses, key=losses.get)
    assert run.learner.step == max(losses) == best + 6 < 40
    assert run.progress.steps[-1]["steps"] == run.learner.step  # no time is left
    run.export()
    assert run.learner.step == best
    assert evaluated(run.learner, HELD_OUT)["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    assert run.progress.said[-1] == f"best eval_loss {losses[best]:.4g} at step {best}; its weights are {tmp_path / 'run' / 'model'}"
    assert f"best evaluation: best eval_loss {losses[best]:.4g} at step {best}" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=12, lr=0.3, checkpoint=1, keep_best=True)
    run.learn()
    best = run.selection.best_step
    assert best < 12
    assert run.folder.checkpoint_steps() == [best, 12]


def test_without_keep_best_the_last_weights_are_the_model(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=10, lr=0.3)
    run.learn()
    run.export()
    assert run.learner.step == 10
    assert run.selection.best_step < 10
    assert "best evaluation" not in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_resumed_run_chooses_as_one_that_was_not_interrupted(tmp_path, model):
    options = {"steps": 12, "lr": 0.3, "patience": 3, "keep_best": True, "checkpoint": 3}
    whole = make_run(tmp_path / "whole", model, **options)
    whole.learn()
    cut = make_run(tmp_path / "cut", model, **options | {"steps": 7})
    cut.learn()
    again = make_run(tmp_path / "cut", model, **options)
    last = again.folder.latest_checkpoint()
    again.learner.load(last)
    again.folder.cut_metrics(again.learner.step)
    again.selection = resumed(again.selection, again.folder.read_state(last).selection)
    again.learn()
    assert again.selection == whole.selection
    kept = ("step", "eval_loss")
    told = [[{name: one[name] for name in kept} for one in read_evaluations(tmp_path / name)] for name in ("whole", "cut")]
    assert told[0] == told[1]


def test_a_resume_of_a_run_that_stopped_early_takes_no_further_step(tmp_path, model):
    options = {"steps": 40, "lr": 0.3, "patience": 2, "checkpoint": 2}
    stopped = make_run(tmp_path / "run", model, **options)
    stopped.learn()
    again = make_run(tmp_path / "run", model, **options)
    again.learner.load(again.folder.latest_checkpoint())
    again.selection = stopped.selection
    assert not again.learn()
    assert again.learner.step == stopped.learner.step < 40
    assert again.progress.said == [f"stopped early, after step {stopped.learner.step}: {stopped.selection.said}"]


def test_a_resume_goes_by_the_present_rules():
    before = dataclasses.replace(selection("eval_loss", None, 2), best=1.0, best_step=4, judged_step=8, without_gain=2)
    assert resumed(selection("eval_loss", None, 5), before) == dataclasses.replace(before, patience=5)
    assert resumed(selection("eval_accuracy", None, 5), before).best is None
    assert resumed(selection("eval_loss", None, 5), None).best is None


def test_answers_are_shown_and_kept_and_cut_back_to_a_checkpoint(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=4, samples=2)
    run.learn()
    kept = [json.loads(line) for line in run.folder.samples_file.read_text().splitlines()]
    assert [one["step"] for one in kept] == [2, 2, 4, 4]
    assert {"prompt", "completion", "reference", "tokens", "ended"} <= kept[0].keys()
    assert sum(text.startswith("answers at step") for text in run.progress.said) == 2
    run.folder.cut_metrics(3)
    assert len(run.folder.samples_file.read_text().splitlines()) == 2
    assert [one["step"] for one in read_evaluations(tmp_path / "run")] == [2]


def test_the_progress_shows_the_last_evaluation(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=3)
    run.learn()
    (evaluation,) = read_evaluations(tmp_path / "run")
    assert [one.get("eval_loss") for one in run.progress.steps] == [None, None, evaluation["eval_loss"]]
    assert "eval_loss" not in read_metrics(tmp_path / "run")[-1]
    assert run.progress.said == [f"step 2: eval_loss {evaluation['eval_loss']:.4g} (the best so far)"]


def test_a_state_without_a_selection_reads_back():
    state = RunState(step=1, lineage=0, places_trained=1, next_index=1)
    assert state.selection is None


def test_a_run_pushes_its_weights_on_the_way_and_at_the_end(tmp_path, model):
    stand_in = HubStandIn()
    with serving(stand_in.app()) as url:
        run = make_run(tmp_path / "run", model, steps=4)
        config = HubConfig(repo="me/mine", token_env="A_TOKEN", every=3, timeout_s=60)
        run.config = run.config.model_copy(update={"hub": config})
        run.pusher = hub.Pusher(config, run.folder.path, run.progress.message, environment(url))
        run.learn()
        run.export()
        run.pusher.finish(run.folder.model, 4)
        run.pusher.close()
    assert stand_in.messages == ["agentrl: step 3", "agentrl: step 4"]
    there, here = stand_in.repos["me/mine"], run.folder.model
    assert there["model.safetensors"] == (here / "model.safetensors").read_bytes()
    assert there["README.md"] == (here / "README.md").read_bytes()
    assert not (tmp_path / "run" / "push").exists()


def test_a_figure_that_evaluations_do_not_have_ends_the_run(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=4)
    run.selection = selection("eval_rewards/accuracies", None, None)
    with pytest.raises(ConfigError, match=r"evaluation.metric is 'eval_rewards/accuracies', and an evaluation of this run gives eval_"):
        run.learn()


def test_what_is_pushed_is_what_was_trained(tmp_path, model):
    run = make_run(tmp_path / "run", model, steps=1, every=1)
    run.learn()
    run.export()
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(run.folder.model).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in run.learner.named_weights())
