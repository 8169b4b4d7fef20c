"""Rollouts of an earlier run as a dataset."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "learner"))

import learner_fakes as fakes
from test_scorer import gradient

from agentrl.config_data import DataConfig
from agentrl.data.prepare import prepare_rows
from agentrl.data.rollout_rows import open_rollouts
from agentrl.data.sources import open_rows
from agentrl.errors import ConfigError
from agentrl.objectives.sft import IMITATION
from agentrl.quickstart.tokenizer import build_tokenizer
from agentrl.rollout_log import RolloutLog
from agentrl.rows import rows_of


def saved(folder, groups):
    log = RolloutLog(folder / "rollouts", 0)
    for group in groups:
        log.write(group)
    log.close()
    return str(folder)


def scores(groups):
    return [[score for score in group.scores if score is not None] for group in groups]


def expected(groups, chosen):
    """Ids and masks of the rows of those rollouts that `chosen` takes, given the rollout and its group's best score."""
    rows = [
        row
        for group in groups
        for rollout in group.rollouts
        if rollout.score.value is not None and chosen(rollout, max(one for one in group.scores if one is not None))
        for row in rows_of(rollout)
        if row.trained.any()
    ]
    return [{"input_ids": row.ids.tolist(), "completion_mask": row.trained.astype(int).tolist()} for row in rows]


def test_rows_are_what_was_sampled_of_those_that_are_good_enough(tmp_path):
    groups = fakes.make_groups(3, groups=4)
    run = saved(tmp_path, groups)
    assert [*open_rows(f"rollouts:{run}?min_reward=1")] == expected(groups, lambda rollout, best: rollout.score.value >= 1)
    best = expected([group for group in groups if len(set(group.scores)) > 1], lambda rollout, best: rollout.score.value == best)
    rows = open_rows(f"rollouts:{run}")
    assert [*open_rows(run)] == best
    assert [rows[index] for index in range(len(rows))] == best
    assert rows.where(0).startswith(f"{run}, task t, member ")
    assert "the best of each group in which scores differ" in rows.notices[0]


def test_what_was_cut_off_is_left_out_where_the_spec_says_so(tmp_path):
    groups = fakes.make_groups(3, groups=2)
    first = groups[0].rollouts[0]
    cut = dataclasses.replace(groups[0], rollouts=(dataclasses.replace(first, ending="truncated"), *groups[0].rollouts[1:]))
    run = saved(tmp_path, [cut, groups[1]])
    kept, dropped = (open_rollouts(f"rollouts:{run}?min_reward=-9{more}") for more in ("", "&truncated=drop"))
    assert len(kept) - len(dropped) == sum(bool(row.trained.any()) for row in rows_of(first))


def test_training_on_them_is_what_a_warm_start_does(tmp_path):
    groups = fakes.make_groups(5)
    run = saved(tmp_path, groups)
    tokenizer = build_tokenizer(["some words"], vocabulary=300)
    examples = prepare_rows(open_rows(f"rollouts:{run}?min_reward=-9"), DataConfig(), "supervised", tokenizer)
    config = fakes.run_config(learner={"max_grad_norm": None})
    learner = fakes.make_learner(fakes.tiny_model(tmp_path / "model", kind="starcoder2"), config, "sft", master_dtype=torch.float64)
    found = gradient(learner, list(examples))
    taken = {}

    def read(optimizer, *_):
        taken.update({name: one.grad.clone() for name, one in learner.policy.named_parameters() if one.grad is not None})

    learner.models.optimizers[0].register_step_pre_hook(read)
    learner.warm(groups, IMITATION, rate=0.0, number=0)
    assert fakes.distance(found, taken) < 1e-12
    counted = sum(int(np.count_nonzero(row.trained)) for group in groups for one in group.rollouts for row in rows_of(one))
    assert sum(example.num_trained for example in examples) == counted


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?min_rewards=1", r"`min_rewards` is not known; behind a run's folder stand min_reward=NUMBER, truncated=drop"),
        ("?min_reward=one", r"min_reward is 'one'; it must be a number"),
        ("?min_reward=", r"min_reward is ''; it must be a number"),
        ("?truncated=yes", r"truncated is 'yes'; it must be keep or drop"),
        ("?min_reward=99", r"a highest score of 2, and no rollout that was not left out reaches min_reward=99: lower it"),
    ],
)
def test_a_wrong_spec_is_told(tmp_path, query, message):
    run = saved(tmp_path, fakes.make_groups(3))
    with pytest.raises(ConfigError, match=message):
        open_rollouts(f"rollouts:{run}{query}")


def test_a_folder_without_rollouts_is_told(tmp_path):
    with pytest.raises(ConfigError, match="which has no rollouts/: give the folder of an earlier run"):
        open_rollouts(f"rollouts:{tmp_path}")
    with pytest.raises(ConfigError, match="and there is no such folder"):
        open_rollouts(f"rollouts:{tmp_path}/nowhere")


def test_equal_scores_do_not_say_which_are_good(tmp_path):
    groups = fakes.with_scores(fakes.make_groups(3, groups=1), [[1.0, 1.0, 1.0, 1.0]])
    with pytest.raises(
        ConfigError, match=r"in none of them do scores differ; the highest is 1: say which rollouts are good with \?min_reward=NUMBER"
    ):
        open_rollouts(f"rollouts:{saved(tmp_path, groups)}")
    nothing = fakes.with_scores(groups, [[None, None, None, None]])
    with pytest.raises(ConfigError, match="holds 1 finished group with no rollout that could be scored"):
        open_rollouts(f"rollouts:{saved(tmp_path / 'other', nothing)}")
