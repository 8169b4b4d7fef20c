from __future__ import annotations

import pytest
import torch

from agentrl.config_learner import LearnerConfig
from agentrl.learner.optim import adamw, learning_rate


def rates(steps: int, **options: object) -> list[float]:
    config = LearnerConfig(lr=1.0, **options)  # type: ignore[arg-type]
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_warmup_rises_to_the_peak_and_a_decay_ends_at_its_floor() -> None:
    assert rates(4) == [1.0] * 4
    assert rates(5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(5, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(7, schedule="cosine", warmup_steps=2, min_lr_ratio=0.1) == pytest.approx([0.5, 1.0, 1.0, 0.8681981, 0.55, 0.2318019, 0.1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_short_and_overlong_runs_stay_in_range(schedule: str) -> None:
    config = LearnerConfig(lr=1.0, schedule=schedule, warmup_steps=3)  # type: ignore[arg-type]
    assert all(0.0 <= learning_rate(config, step, steps) <= 1.0 for steps in (1, 2, 3, 4) for step in range(9))


def test_only_matrices_outside_the_embeddings_are_decayed() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "linear": torch.nn.Linear(3, 3), "norm": torch.nn.LayerNorm(3)})
    frozen = torch.nn.Linear(3, 3).requires_grad_(False)
    model["frozen"] = frozen
    groups = adamw(model, LearnerConfig(weight_decay=0.1)).param_groups
    assert [(len(one["params"]), one["weight_decay"]) for one in groups] == [(1, 0.1), (4, 0.0)]
    assert groups[0]["params"][0] is model["linear"].weight
