from __future__ import annotations

from types import SimpleNamespace

import pytest

from agentrl import runfile
from agentrl.errors import ConfigError
from agentrl.loggers import Loggers


def config(*names):
    return runfile.from_mapping({"model": "quickstart", "env": "arithmetic", "loggers": list(names), "learner": {"lr": 3e-5}})


class FakeTracker:
    """wandb and trackio, as far as they are called."""

    def __init__(self, name, *, fails_at=None):
        self.__name__ = name
        self.calls = []
        self._fails_at = fails_at

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, figures, *, step):
        if step == self._fails_at:
            raise RuntimeError("no network,\n   and more")
        self.calls.append(("log", figures, step))

    def finish(self):
        self.calls.append(("finish",))


class FakeTensorBoard:
    def __init__(self):
        self.calls = []

    def SummaryWriter(self, **options):  # its name
        self.calls.append(options)
        return SimpleNamespace(add_scalar=lambda *scalar: self.calls.append(scalar), close=lambda: self.calls.append("closed"))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_given_the_run_file_and_every_figure(tmp_path, name):
    fake = FakeTracker(name)
    loggers = Loggers(config(name), tmp_path / "a run", step=0, say=print, load={name: fake}.__getitem__)
    loggers.log({"step": 1, "loss": 2.0, "reward/mean": float("nan")})
    loggers.log({"step": 1, "eval_loss": 3.0})
    loggers.close()
    (_, options), *rest = fake.calls
    assert (options["project"], options["name"], options["resume"]) == ("agentrl", "a run", "allow")
    assert options["config"]["learner"]["lr"] == 3e-5
    assert options.get("id") == ("a-run" if name == "wandb" else None)
    assert rest == [("log", {"loss": 2.0}, 1), ("log", {"eval_loss": 3.0}, 1), ("finish",)]


def test_tensorboard_writes_into_the_run_folder_and_forgets_what_a_crash_left(tmp_path):
    fake = FakeTensorBoard()
    loggers = Loggers(config("tensorboard"), tmp_path, step=7, say=print, load=lambda name: fake)
    loggers.log({"step": 8, "loss": 2.0})
    loggers.close()
    assert fake.calls == [{"log_dir": str(tmp_path / "tensorboard"), "purge_step": 8}, ("loss", 2.0, 8), "closed"]


def test_one_that_fails_is_told_once_and_left_out(tmp_path):
    said, broken, sound = [], FakeTracker("wandb", fails_at=2), FakeTracker("trackio")
    loggers = Loggers(config("wandb", "trackio"), tmp_path, step=0, say=said.append, load={"wandb": broken, "trackio": sound}.__getitem__)
    for step in (1, 2, 3):
        loggers.log({"step": step, "loss": 1.0})
    loggers.close()
    assert [call[-1] for call in broken.calls[1:]] == [1]
    assert [call[-1] for call in sound.calls[1:]] == [1, 2, 3, "finish"]
    assert said == ["wandb failed and is left out from here on: RuntimeError: no network, and more; metrics.jsonl has everything"]


def test_one_that_is_not_installed_is_refused_before_any_begins(tmp_path):
    fake = FakeTracker("wandb")

    def load(name):
        if name != "wandb":
            raise ImportError(f"No module named {name!r}")
        return fake

    with pytest.raises(ConfigError, match=r'names trackio, which is not installed .*: pip install "agentrl\[trackio\]"'):
        Loggers(config("wandb", "trackio"), tmp_path, step=0, say=print, load=load)
    assert fake.calls == []


def test_without_any_nothing_is_loaded(tmp_path):
    loggers = Loggers(config(), tmp_path, step=0, say=print, load=None)
    loggers.log({"step": 1, "loss": 1.0})
    loggers.close()


def test_an_unknown_one_is_refused():
    with pytest.raises(ConfigError, match=r"`loggers.0` got 'mlflow' \(text\); it must be one of tensorboard, wandb, trackio"):
        config("mlflow")
