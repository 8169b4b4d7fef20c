from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from agentrl import objectives
from agentrl.learner import Learner
from agentrl.learner.samples import candidates
from agentrl.learner.scoring import score
from agentrl.learner.signals import ENTROPY, REFERENCE, START, VALUES

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.objectives import Losses, TokenBatch


def passes_without_gradient(learner: Learner) -> dict[str, int]:
    """How often each model is run before the step's own forward passes, counted while an update runs."""
    models = {"policy": learner.policy, "reference": learner.models.reference, "critic": learner.models.critic}
    counts = dict.fromkeys(models, 0)
    for name, model in models.items():
        if model is not None:
            model.register_forward_hook(
                lambda *_, name=name: counts.__setitem__(name, counts[name] + (not torch.is_grad_enabled()))  # type: ignore[misc]
            )
    learner.update(fakes.make_groups(0))
    return counts


@pytest.mark.parametrize(
    ("objective", "run"),
    [
        ({"name": "grpo"}, set()),
        ({"name": "grpo", "beta": 0.1}, {"reference"}),
        ({"name": "grpo", "corrections": [{"name": "tis"}]}, set()),
        ({"name": "grpo", "entropy_coef": 0.1}, set()),
        ({"name": "decoupled_ppo", "minibatches": 1}, set()),
        ({"name": "grpo", "epochs": 2}, {"policy"}),
        ({"name": "grpo", "minibatches": 2}, {"policy"}),
        ({"name": "grpo", "top_entropy": 0.5}, {"policy"}),
        ({"name": "m2po"}, {"policy"}),
        ({"name": "ppo", "epochs": 1, "beta": 0.0, "critic": "head"}, {"policy"}),
        ({"name": "ppo", "epochs": 1, "beta": 0.0, "critic": "model"}, {"critic"}),
        ({"name": "ppo", "epochs": 2, "critic": "model"}, {"policy", "reference", "critic"}),
        ({"name": "online_dpo"}, {"reference"}),
    ],
    ids=str,
)
def test_nothing_is_scored_that_nobody_asks_for(objective: dict[str, Any], run: set[str], model_folder: Callable[..., str]) -> None:
    counts = passes_without_gradient(fakes.make_learner(model_folder(), fakes.run_config(), objective))
    assert {name for name, count in counts.items() if count} == run


@pytest.mark.parametrize("kind", ["head", "model"])
def test_scores_do_not_depend_on_the_packing(kind: str, model_folder: Callable[..., str]) -> None:
    objective = {"name": "ppo", "critic": kind}
    learner = fakes.shaken(
        fakes.make_learner(model_folder(kind="starcoder2"), fakes.run_config(), objective, master_dtype=torch.float64), scale=0.05
    )
    found = candidates(fakes.make_groups(3), learner.config, learner.models.needs)
    places = list(range(len(found.samples)))
    cuts = [[places], [[place] for place in places], [places[5:], [], places[:5]]]
    whole, single, mixed = (score(found.samples, cut, learner.models, learner.accelerator, ragged=True) for cut in cuts)
    assert set(whole[0]) == {REFERENCE, START, ENTROPY, VALUES}
    for sample, one, other, third in zip(found.samples, whole, single, mixed, strict=True):
        for name, values in one.items():
            assert values.shape == (sample.num_trained,)
            np.testing.assert_allclose(other[name], values, atol=1e-12)
            np.testing.assert_allclose(third[name], values, atol=1e-12)
        assert np.abs(one[REFERENCE] - one[START]).max() > 1e-3


@pytest.mark.parametrize("passes", [{"epochs": 3}, {"minibatches": 3}, {"epochs": 2, "minibatches": 2}], ids=str)
def test_the_start_is_the_policy_before_the_first_optimizer_step(passes: dict[str, int], model_folder: Callable[..., str]) -> None:
    seen: list[tuple[float, dict[float, np.ndarray]]] = []

    def spy(batch: TokenBatch, config: Any) -> Losses:
        away = float((batch.logprobs - batch.start).abs().max().detach())
        starts = {
            float(batch.sampler_logprobs[batch.rollout == one].sum()): batch.start[batch.rollout == one].numpy().copy()
            for one in range(batch.num_rollouts)
        }
        seen.append((away, starts))
        return row.loss(batch, config)

    row = objectives.get("grpo")
    options = objectives.validate({"name": "grpo", "corrections": [{"name": "tis"}], **passes})
    learner = Learner(
        fakes.run_config(), dataclasses.replace(row, loss=spy), options, model_folder(kind="starcoder2"), master_dtype=torch.float64
    )
    groups = fakes.make_groups(2)
    for seed in range(2):
        learner.update(groups)
        away = [one for one, _ in seen]
        assert away[0] < 1e-12, "the first optimizer step's ratio to the start is 1"
        assert min(away[1:]) > 1e-4, "that of later ones is not"
        starts: dict[float, np.ndarray] = {}
        for _, by_rollout in seen:
            for rollout, values in by_rollout.items():
                np.testing.assert_array_equal(values, starts.setdefault(rollout, values))
        assert len(starts) == 12, f"in step {seed}"
        seen.clear()
