"""What an objective adapts from step to step, beside a computation by hand, and the gradient that each step makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from plain_rows import PlainModels, plain_gradients

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner
    from agentrl.records import Group


def learner_of(folder: str, objective: dict[str, Any]) -> Learner:
    learner = fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.01}), objective, master_dtype=torch.float64)
    return fakes.shaken(learner, scale=0.01)


def scored(folder: str, learner: Learner, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[tokens] log-probs, sampler's log-probs and entropies under the learner as it is."""
    models = PlainModels(folder, learner)
    with torch.no_grad():
        found = [models.score(rollout) for group in groups for rollout in group.rollouts]
    sampler = torch.from_numpy(np.concatenate([one.sampler for one in found])).double()
    return torch.cat([one.logprobs for one in found]), sampler, torch.cat([one.entropy for one in found])


def test_beta_follows_its_target(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    objective = {"name": "grpo", "beta": 0.5, "kl_target": 0.6, "kl_horizon": 40.0}
    learner, at_first = learner_of(folder, objective), fakes.make_learner(folder, fakes.run_config(), master_dtype=torch.float64)
    beta, seen = 0.5, []
    for seed in range(5):
        groups = fakes.make_groups(seed)
        now, sampler, _ = scored(folder, learner, groups)
        reference, _, _ = scored(folder, at_first, groups)
        gap = reference - now
        kl = float(((now - sampler).exp() * (gap.exp() - gap - 1)).sum()) / 12  # nats a rollout, weighed as the loss weighs it
        state = dict(learner.state)
        (found,) = fakes.every_gradient(learner, groups)
        assert fakes.distance(found, plain_gradients(folder, learner, groups, {"name": "grpo", "beta": beta})) < 1e-11
        learner.state = state
        learner.update(groups)
        beta *= 1 + min(0.2, max(-0.2, kl / 0.6 - 1)) * 12 / 40
        assert learner.state == pytest.approx({"beta": beta})
        seen.append(beta)
    assert min(np.diff([0.5, *seen])) < 0 < max(np.diff([0.5, *seen]))


@pytest.mark.parametrize("kl", [0.0, 1e6])
def test_a_step_far_beyond_the_horizon_does_not_turn_betas_sign(kl: float, model_folder: Callable[..., str]) -> None:
    learner = learner_of(
        model_folder(kind="starcoder2"), {"name": "grpo", "beta": 0.5, "kl_target": 1e3 if kl == 0 else 1e-9, "kl_horizon": 1.0}
    )
    learner.update(fakes.make_groups(0))
    assert learner.state == {"beta": pytest.approx(0.4 if kl == 0 else 0.6)}


def test_the_entropy_bonus_comes_and_goes_with_the_entropy(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    target, delta, least, most = 3.0, 0.02, 0.01, 0.06
    objective = {
        "name": "grpo",
        "entropy_coef": 0.03,
        "entropy_target": target,
        "entropy_delta": delta,
        "entropy_coef_min": least,
        "entropy_coef_max": most,
    }
    learner = learner_of(folder, objective)
    coefficient, in_force = 0.03, []
    for seed, factor in enumerate((1, 2, 1, 1, 1, 0.5, 1, 1.5)):  # a sharper policy, then a blunter one
        groups = fakes.make_groups(seed)
        with torch.no_grad():
            learner.policy.base.get_output_embeddings().weight.mul_(factor)
        entropy = float(scored(folder, learner, groups)[2].mean())
        in_force.append(coefficient if entropy <= target else 0.0)
        state = dict(learner.state)
        (found,) = fakes.every_gradient(learner, groups)
        expected = plain_gradients(folder, learner, groups, {"name": "grpo", "entropy_coef": in_force[-1]})
        assert fakes.distance(found, expected) < 1e-11
        learner.state = state
        learner.update(groups)
        coefficient = min(most, max(least, coefficient + (delta if entropy < target else -delta)))
        assert learner.state == pytest.approx({"entropy_coef": coefficient})
    assert len(set(in_force)) > 3, "the course of the test passes the target both ways"
    assert 0.0 in in_force
    assert any(in_force)


@pytest.mark.parametrize("decay", [None, 0.0, 0.7])
def test_the_running_baseline_is_a_mean_over_earlier_steps(decay: float | None, model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    objective = {"name": "reinforce", "running_baseline": 5.0, "running_decay": decay}
    learner = learner_of(folder, objective)
    baseline, means = 5.0, []
    for seed in range(4):
        groups = fakes.make_groups(seed)
        state = dict(learner.state)
        (found,) = fakes.every_gradient(learner, groups)
        fixed = {"name": "reinforce", "running_baseline": baseline}
        assert fakes.distance(found, plain_gradients(folder, learner, groups, fixed)) < 1e-11
        learner.state = state
        learner.update(groups)
        means.append(np.mean([group.scores for group in groups]))
        baseline = float(np.mean(means)) if decay is None else decay * baseline + (1 - decay) * float(means[-1])
        assert learner.state == pytest.approx({"running_baseline": baseline, "running_steps": seed + 1})


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "reinforce", "running_baseline": 5.0},
        {"name": "grpo", "beta": 0.1, "kl_target": 0.1},
        {"name": "grpo", "entropy_target": 1.0, "entropy_coef": 0.1},
    ],
    ids=str,
)
def test_a_step_without_rollouts_adapts_nothing(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(kind="starcoder2"), objective)
    learner.update(fakes.make_groups(0))
    state = dict(learner.state)
    unscorable = fakes.with_scores(fakes.make_groups(1), [[None] * 4] * 3)
    for groups in ([], unscorable):
        assert learner.update(groups)["learner/skipped"] == 1
        assert learner.state == state


def test_what_has_adapted_comes_back_from_a_checkpoint(model_folder: Callable[..., str], tmp_path: Path) -> None:
    objective = {"name": "grpo", "entropy_target": 1.0, "entropy_coef": 0.1}
    learner = learner_of(model_folder(kind="starcoder2"), objective)
    learner.save(tmp_path)
    learner.update(fakes.make_groups(0))
    learner.load(tmp_path)
    assert learner.state == {"entropy_coef": 0.1}


def test_several_optimizer_steps_adapt_once(model_folder: Callable[..., str]) -> None:
    learner = learner_of(
        model_folder(kind="starcoder2"),
        {"name": "ppo", "epochs": 2, "minibatches": 2, "kl_target": 1e-9, "kl_horizon": 120.0, "beta": 0.5, "entropy_target": 99.0},
    )
    learner.update(fakes.make_groups(0))
    assert learner.state == pytest.approx({"beta": 0.5 * (1 + 0.2 * 12 / 120), "entropy_coef": 0.005})
