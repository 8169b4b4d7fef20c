from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from agentrl.errors import CheckpointError
from agentrl.learner.checkpoint import OPTIMIZER, STATE, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner

PPO: dict[str, object] = {"name": "ppo", "epochs": 2, "minibatches": 2, "critic_warmup_steps": 3}

SETTINGS: list[tuple[int, dict[str, object], dict[str, object]]] = [
    (0, {}, {"name": "grpo"}),
    (2, {}, {"name": "grpo"}),
    (0, {"lora": {"rank": 4}}, {"name": "grpo"}),
    (2, {"lora": {"rank": 4}}, {"name": "grpo"}),
    (2, {"schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1}, {"name": "grpo"}),
    (2, {"weight_decay": 0.1}, PPO),
    (1, {}, PPO | {"critic": "head"}),
    (1, {"lora": {"rank": 4}}, PPO | {"critic": "head", "critic_warmup_steps": 0}),
    (1, {"reference_sync": {"every": 2, "rate": 0.5}}, {"name": "grpo", "beta": 0.1, "kl_target": 0.01, "kl_horizon": 50.0}),
    (3, {"reference_sync": {"every": 3, "rate": 1.0}}, PPO | {"kl_target": 0.01, "entropy_target": 2.0, "epochs": 1}),
    (2, {}, {"name": "reinforce", "running_decay": 0.5}),
]
"""Steps before the checkpoint, the learner's options, the objective."""


def learner_of(folder: str, options: dict[str, object] | None = None, **rest: object) -> Learner:
    return fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.01} | (options or {})), **rest)  # type: ignore[arg-type]


def state(learner: Learner) -> list[torch.Tensor]:
    optimizers = [optimizer.state_dict() for optimizer in learner.models.optimizers]
    moments = [value for one in optimizers for _, entry in sorted(one["state"].items()) for value in entry.values()]
    rates = [torch.tensor(group["lr"]) for one in optimizers for group in one["param_groups"]]
    models = [model for model in (learner.policy, learner.models.critic, learner.models.reference) if model is not None]
    return [parameter.detach().clone() for model in models for parameter in model.parameters()] + moments + rates


def bit_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize(("steps_before", "options", "objective"), SETTINGS, ids=str)
def test_a_resumed_learner_goes_on_bit_for_bit(
    steps_before: int, options: dict[str, object], objective: dict[str, object], model_folder: Callable[..., str], tmp_path: Path
) -> None:
    """As one that was saved and went on, and as one that was never saved."""
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    learner, unsaved, resumed = (learner_of(folder, options, objective=objective) for _ in range(3))
    for seed in range(steps_before):
        for one in (learner, unsaved):
            one.update(fakes.make_groups(seed))
    learner.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.step == steps_before
    assert resumed.state == learner.state
    for seed in range(2):
        metrics = [one.update(fakes.make_groups(10 + seed)) for one in (learner, resumed, unsaved)]
        for other in metrics[1:]:
            assert all(metrics[0][name] == other[name] for name in metrics[0] if not name.startswith("time/"))
    for other in (resumed, unsaved):
        assert bit_equal(state(learner), state(other))
        assert learner.state == other.state
        assert learner.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (({}, {"name": "grpo"}), ({}, {"name": "grpo", "beta": 0.1, "kl_target": 0.1}), r"keeps nothing .* this run adapts \['beta'\]"),
        (({}, {"name": "reinforce"}), ({}, {"name": "grpo"}), r"keeps \['running_baseline', 'running_steps'\] .* adapts nothing"),
        (({}, PPO), ({}, PPO | {"critic": "head"}), r"holds other weights .* such as value_head"),
        (({}, PPO | {"critic": "head"}), ({}, PPO), r"holds no critic, .*: objective\.critic changed"),
        (({}, PPO | {"critic": "head"}), ({}, {"name": "grpo"}), r"holds other weights .* such as value_head"),
        (({}, {"name": "grpo"}), ({}, PPO), r"holds no critic, .*: objective\.critic changed"),
        (
            ({}, {"name": "rloo"}),
            ({"reference_sync": {}}, {"name": "rloo"}),
            r"holds no reference, .*: learner\.reference_sync changed",
        ),
        (
            ({"reference_sync": {}}, {"name": "rloo"}),
            ({}, {"name": "rloo"}),
            r"holds a reference that has moved, .*: set learner\.reference_sync as it was",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_options_is_refused(
    before: tuple[dict[str, object], dict[str, object]],
    after: tuple[dict[str, object], dict[str, object]],
    said: str,
    model_folder: Callable[..., str],
    tmp_path: Path,
) -> None:
    learner_of(model_folder(), before[0], objective=before[1]).save(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        learner_of(model_folder(), after[0], objective=after[1]).load(tmp_path)


def test_moments_that_do_not_fit_are_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = learner_of(model_folder())
    learner.update(fakes.make_groups(0))
    learner.save(tmp_path)
    saved = torch.load(tmp_path / OPTIMIZER, weights_only=True)
    name = next(iter(saved["state"]))
    for broken in (
        {name: saved["state"][name] | {"exp_avg": torch.zeros(3)}},
        {"nobody.weight": saved["state"][name]},
    ):
        torch.save({"state": broken}, tmp_path / OPTIMIZER)
        with pytest.raises(CheckpointError, match="does not fit this run"):
            learner.load(tmp_path)


def test_random_streams_go_on(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = learner_of(model_folder())
    learner.save(tmp_path)
    drawn = (random.random(), np.random.random(), float(torch.rand(())))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    learner.load(tmp_path)
    assert (random.random(), np.random.random(), float(torch.rand(()))) == drawn


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
def test_a_missing_or_broken_file_is_named(name: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = learner_of(model_folder())
    learner.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name):
        learner.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        learner.load(tmp_path)


def test_another_schema_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner = learner_of(model_folder())
    learner.save(tmp_path)
    written = json.loads((tmp_path / STATE).read_text())
    (tmp_path / STATE).write_text(json.dumps(written | {"schema_version": 99}))
    with pytest.raises(CheckpointError, match="schema version 99"):
        learner.load(tmp_path)


def test_a_checkpoint_of_other_weights_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner_of(model_folder()).save(tmp_path)
    with pytest.raises(CheckpointError, match="holds other weights than the model trains"):
        learner_of(model_folder(), {"lora": {"rank": 2}}).load(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*size mismatch.* \.\.\. and \d+ more$"):
        learner_of(model_folder(intermediate_size=64)).load(tmp_path)


def test_a_disk_that_refuses_is_an_error_that_names_the_folder(model_folder: Callable[..., str], tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file, not a folder")
    learner = learner_of(model_folder())
    with pytest.raises(CheckpointError, match="occupied"):
        learner.save(occupied)
    for name in (WEIGHTS, OPTIMIZER):
        broken = tmp_path / f"no-{name}"
        (broken / name).mkdir(parents=True)
        with pytest.raises(CheckpointError, match=f"no-{name}"):
            learner.save(broken)


def test_a_checkpoint_of_an_adapter_is_small(model_folder: Callable[..., str], tmp_path: Path) -> None:
    learner_of(model_folder(), {"lora": {"rank": 1}}).save(tmp_path / "adapter")
    learner_of(model_folder()).save(tmp_path / "whole")
    sizes = [(tmp_path / kind / WEIGHTS).stat().st_size for kind in ("adapter", "whole")]
    assert sizes[0] < sizes[1] / 2
