"""What servers said of a step's tokens trains as a teacher in process does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from agentrl.config import TeacherConfig
from agentrl.learner.samples import candidates

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.learner import Learner
    from agentrl.records import Group

URL = "http://a:1"


def learner_of(folder: str, teacher: str, objective: dict[str, Any], *, served: bool) -> Learner:
    config = fakes.run_config(teacher=[TeacherConfig(model=teacher, servers=[URL] if served else [])])
    return fakes.make_learner(folder, config, objective, master_dtype=torch.float64)


def said(learner: Learner, groups: list[Group], top_k: int) -> list[Group]:
    """The groups with what the teacher of a learner says, in the columns that rollout processes fill."""
    policy = learner.models.teachers.loaded[0].policy  # type: ignore[union-attr]
    policy.base.set_attn_implementation("eager")
    found = []
    for group in groups:
        rollouts = []
        for one in group.rollouts:
            turns = list(one.turns)
            for index, turn in enumerate(turns):
                before = turns[turn.parent].span.ids if turn.parent >= 0 else np.zeros(0, dtype=np.int32)
                ids = torch.from_numpy(np.concatenate([before, turn.span.ids]).astype(np.int64))
                with torch.no_grad():
                    rows = torch.log_softmax(policy.base(input_ids=ids[None], use_cache=False).logits[0], -1)
                rows = torch.cat([rows[:1], rows[:-1]])[len(before) :].numpy()
                own = rows[np.arange(len(turn.span)), turn.span.ids]
                order = np.argsort(-rows, axis=1)[:, :top_k].astype(np.int32)
                columns = (
                    {"teacher": own}
                    if not top_k
                    else {"teacher_ids:teacher": order, "teacher_top:teacher": np.take_along_axis(rows, order, 1)}
                )
                turns[index] = dataclasses.replace(turn, span=dataclasses.replace(turn.span, columns=columns))
            rollouts.append(dataclasses.replace(one, turns=tuple(turns)))
        found.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    return found


@pytest.mark.parametrize(
    ("objective", "top_k"),
    [
        ({"name": "opd", "estimate": "sampled"}, 0),
        ({"name": "opd", "estimate": "top_k", "top_k": 5, "mixture": 0.4}, 5),
        ({"name": "iw_opd"}, 0),
    ],
)
def test_a_step_is_that_of_the_same_teacher_in_process(objective: dict[str, Any], top_k: int, model_folder: Callable[..., str]) -> None:
    folder, teacher = model_folder(), model_folder(seed=3)
    here = fakes.shaken(learner_of(folder, teacher, objective, served=False))
    there = fakes.shaken(learner_of(folder, teacher, objective, served=True))
    groups = fakes.make_groups(1)
    expected, figures = fakes.gradient_at_rest(here, groups, max_grad_norm=None)
    filled = said(here, groups, top_k)
    found, metrics = fakes.gradient_at_rest(there, filled, max_grad_norm=None)
    assert metrics["loss"] == pytest.approx(figures["loss"], rel=1e-5)
    assert fakes.distance(found, expected) < 1e-5
    cut, _ = fakes.gradient_at_rest(there, filled, max_grad_norm=None, tokens_per_micro_batch=20)
    assert fakes.distance(cut, found) < 1e-9
    assert there.models.teachers.loaded[0].policy is None, "no copy of it is loaded"  # type: ignore[union-attr]


def test_what_the_disk_kept_of_no_chance_reads_as_no_chance(model_folder: Callable[..., str]) -> None:
    objective = {"name": "opd", "estimate": "top_k", "top_k": 4}
    learner = learner_of(model_folder(), model_folder(seed=3), objective, served=True)
    here = learner_of(model_folder(), model_folder(seed=3), objective, served=False)
    losses = []
    for nothing in (-np.inf, np.nan):
        groups = said(here, fakes.make_groups(1), 4)
        for group in groups:
            for one in group.rollouts:
                for turn in one.turns:
                    turn.span.columns["teacher_top:teacher"][:, -1] = nothing
        losses.append(fakes.gradient_at_rest(learner, groups)[1]["loss"])
    assert losses[0] == losses[1]


def test_columns_of_branches_and_later_turns_reach_their_tokens(model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(), model_folder(seed=3), {"name": "opd", "estimate": "sampled"}, served=True)
    groups = fakes.make_groups(2)
    marked = []
    for group in groups:
        rollouts = []
        for one in group.rollouts:
            turns = tuple(
                dataclasses.replace(turn, span=dataclasses.replace(turn.span, columns={"teacher": -turn.span.ids.astype(np.float32)}))
                for turn in one.turns
            )
            rollouts.append(dataclasses.replace(one, turns=turns))
        marked.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    for sample in candidates(marked, learner.config, learner.models.needs).samples:
        np.testing.assert_array_equal(sample.columns["teacher"], -sample.targets)
