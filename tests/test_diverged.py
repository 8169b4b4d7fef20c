"""A run whose learner diverges: nobody is given its weights, and no checkpoint holds them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from test_run import make_config, make_run, model_folder, scripted_group, start_generators  # noqa: F401 - the fixture

from agentrl.errors import LearnerDiverged
from agentrl.records import Score
from agentrl.run import _learn_and_save
from agentrl.run_folder import RunFolder, read_metrics


def diverging(model_folder, tmp_path, *, play_one=scripted_group, **learner):  # noqa: F811
    config = make_config(model_folder, learner={"device": "cpu"} | learner, checkpoint={"every": 1})
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, config.group_size, play_one=play_one)
    return run, folder


@pytest.mark.parametrize("rate", [1e20, 1e38, 1e300])
def test_weights_beyond_all_bounds_are_neither_published_nor_saved(rate, model_folder, tmp_path):  # noqa: F811
    run, folder = diverging(model_folder, tmp_path, lr=rate)
    with pytest.raises(LearnerDiverged, match=r"step [12].*(lr|infinite|not finite)"):
        _learn_and_save(run)
    published = [version.step for version in run.session.versions]
    kept = sorted(path.name for path in folder.checkpoints.glob("*"))
    assert published == list(range(1, run.learner.step + 1))
    assert kept == [f"step-{step:06d}" for step in published]
    assert not folder.model.exists()
    for one in read_metrics(folder.path):
        assert math.isfinite(one["loss"])
    if rate > 1e30:
        assert published == []


def test_a_loss_that_is_not_finite_leaves_the_last_good_step(model_folder, tmp_path):  # noqa: F811
    def play_one(dispatch, size):
        group = scripted_group(dispatch, size)
        factor = 1.0 if dispatch.version.step < 2 else 1e150
        scores = [Score(value=factor * number) for number in range(size)]
        return replace(group, rollouts=tuple(replace(one, score=score) for one, score in zip(group.rollouts, scores, strict=True)))

    run, folder = diverging(model_folder, tmp_path, play_one=play_one, lr=1e-4)
    run.learner._options = run.learner._options.model_copy(update={"scale_rewards": "none"})
    mark = []
    run.learner.models.optimizers[0].register_step_post_hook(lambda *_: mark.append(run.learner.fingerprint()))
    with pytest.raises(LearnerDiverged, match="step 3: loss"):
        _learn_and_save(run)
    assert run.learner.fingerprint() == mark[-1]
    assert [version.step for version in run.session.versions] == [1, 2]
    assert folder.latest_checkpoint().name == "step-000002"
    again = make_run(run.config, folder)
    again.learner.load(folder.latest_checkpoint())
    assert again.learner.fingerprint() == mark[-1]
