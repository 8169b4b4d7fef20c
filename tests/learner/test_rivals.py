from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from plain_rows import PlainModels

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.records import Group

SCORES = [[0.0, 2.0, 1.0, 1.0], [1.0, 1.0, 0.0, 3.0], [2.0, 0.0, 1.0, 0.0]]


def groups_of(share: float) -> list[Group]:
    return fakes.rivals(fakes.with_scores(fakes.make_groups(3), SCORES), share)


def with_other_rivals(groups: list[Group], share: float) -> list[Group]:
    """The same scores and policy's half, and quite other tokens of the rivals."""
    others = fakes.rivals(fakes.with_scores(fakes.make_groups(99), SCORES), share)
    return [dataclasses.replace(one, rollouts=(*one.rollouts[:2], *other.rollouts[2:])) for one, other in zip(groups, others, strict=True)]


@pytest.mark.parametrize(("name", "share"), [("nash_md", 0.25), ("a2po", 1.0)])
def test_only_the_policys_half_is_trained(name: str, share: float, model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    learner = fakes.shaken(fakes.make_learner(folder, fakes.run_config(), {"name": name}, master_dtype=torch.float64))
    groups = groups_of(share)
    expected, metrics = fakes.gradient_at_rest(learner, groups)
    found, _ = fakes.gradient_at_rest(learner, with_other_rivals(groups, share))
    assert fakes.distance(found, expected) < 1e-12
    own = [one for group in groups for one in group.rollouts[:2]]
    assert metrics["learner/rollouts"] == len(own)
    assert metrics["learner/counted_tokens"] == metrics["learner/trained_tokens"] == sum(one.num_sampled for one in own)


def test_a_rivals_reward_moves_its_twin_alone(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(), {"name": "nash_md", "beta": 0.0})
    metrics = learner.update(groups_of(0.25))
    chances = [1 / (1 + math.exp(-(one[place] - one[place + 2]))) for one in SCORES for place in range(2)]
    assert metrics["rewards/probabilities"] == pytest.approx(np.mean(chances), abs=1e-6)


def test_the_value_of_a_task_is_that_of_the_references_samples(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(), {"name": "a2po", "beta1": 0.5})
    metrics = learner.update(groups_of(1.0))
    values = [0.5 * math.log(sum(math.exp(reward / 0.5) for reward in one[2:]) / 2) for one in SCORES]
    advantages = [reward - value for one, value in zip(SCORES, values, strict=True) for reward in one[:2]]
    assert metrics["advantage"] == pytest.approx(np.mean(advantages), rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean(np.square(advantages)), rel=1e-4), "the policy is its reference at the start"


def test_tasks_that_the_reference_never_solves_are_left_out(model_folder: Callable[..., str]) -> None:
    groups = fakes.rivals(
        fakes.with_scores(fakes.make_groups(3), [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, None, None], [0.0, 0.0, 0.0, 1.0]]), 1.0
    )
    learner = fakes.make_learner(model_folder(), fakes.run_config(), {"name": "a2po"})
    assert learner.update(groups)["learner/rollouts"] == 2
    assert learner.update(groups[:2])["learner/skipped"] == 1


def test_optimism_pushes_the_rivals_log_prob_down_and_nothing_else(model_folder: Callable[..., str]) -> None:
    """gradient(alpha) - gradient(0) = alpha x that of the mean log-prob of the rivals in pairs, by plain rows."""
    folder, alpha, found = model_folder(kind="starcoder2"), 0.7, []
    groups = groups_of(1.0)
    for weight in (alpha, 0.0):
        objective: dict[str, Any] = {"name": "xpo", "alpha": weight}
        learner = fakes.shaken(fakes.make_learner(folder, fakes.run_config(), objective, master_dtype=torch.float64))
        found += fakes.every_gradient(learner, groups)
    plain = PlainModels(folder, learner)
    paired = [
        one.rollouts[place + 2]
        for one, scores in zip(groups, SCORES, strict=True)
        for place in range(2)
        if scores[place] != scores[place + 2]
    ]
    assert len(paired) == 5
    (alpha / len(paired) * sum(plain.score(one).logprobs.sum() for one in paired)).backward()
    optimism = {name: one - found[1][name] for name, one in found[0].items()}
    assert fakes.distance(optimism, plain.gradients()) < 1e-10
