from __future__ import annotations

from pathlib import Path

import learner_fakes as fakes
import numpy as np
import pytest

from agentrl import objectives, registry
from agentrl.objectives import GroupSignals

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_objective.py"


@pytest.fixture(scope="module")  # a module registers once
def example():
    before = dict(objectives.registry._objectives)
    registry.import_module(str(EXAMPLE))
    yield objectives.get("best_of_group")
    objectives.registry._objectives.clear()
    objectives.registry._objectives.update(before)


def test_the_examples_objective_imitates_the_best_rollouts(model_folder, example):
    learner = fakes.make_learner(model_folder(), fakes.run_config(), "best_of_group")
    groups = fakes.make_groups(forks=False)
    rollouts = [(rollout, group) for group in groups for rollout in group.rollouts]
    best = [rollout.num_sampled for rollout, group in rollouts if min(group.scores) < rollout.score.value == max(group.scores)]
    _, first = fakes.gradient_at_rest(learner, groups)
    for _ in range(3):
        learner.update(groups)
    _, last = fakes.gradient_at_rest(learner, groups)
    assert 0 < last["loss"] < first["loss"]
    assert first["best/share"] == pytest.approx(sum(best) / sum(rollout.num_sampled for rollout, _ in rollouts))


@pytest.mark.parametrize(("best", "chosen"), [(1, [0, 1, 0]), (2, [0, 1, 1]), (9, [0, 1, 1])])
def test_its_option_says_how_many_are_the_best(example, best, chosen):
    signals = [GroupSignals(rewards=np.array([0.0, 2.0, 1.0])), GroupSignals(rewards=np.array([1.0, 1.0]))]
    config = objectives.validate({"name": "best_of_group", "best": best})
    assert [values.tolist() for values in example.advantages(signals, config)] == [chosen, [0, 0]]
