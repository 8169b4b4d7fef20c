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

SETTINGS: list[dict[str, object]] = [
    {},
    {"lora": {"rank": 4}},
    {"schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1},
]


def learner_of(folder: str, options: dict[str, object] | None = None, **rest: object) -> Learner:
    return fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.01} | (options or {})), **rest)  # type: ignore[arg-type]


def state(learner: Learner) -> list[torch.Tensor]:
    optimizer = learner.models.optimizers[0].state_dict()
    moments = [value for entry in optimizer["state"].values() for value in entry.values()]
    rates = [torch.tensor(group["lr"]) for group in optimizer["param_groups"]]
    return [parameter.detach().clone() for parameter in learner.policy.parameters()] + moments + rates


def bit_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_resumed_learner_goes_on_bit_for_bit(
    options: dict[str, object], steps_before: int, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    folder = model_folder(kind="qwen3", tie_word_embeddings=True)
    learner = learner_of(folder, options)
    for seed in range(steps_before):
        learner.update(fakes.make_groups(seed))
    learner.save(tmp_path)
    resumed = learner_of(folder, options)
    resumed.load(tmp_path)
    assert resumed.step == steps_before
    for seed in range(3):
        metrics = [one.update(fakes.make_groups(10 + seed)) for one in (learner, resumed)]
        assert all(metrics[0][name] == metrics[1][name] for name in metrics[0] if not name.startswith("time/"))
    assert bit_equal(state(learner), state(resumed))
    assert learner.fingerprint() == resumed.fingerprint()


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
    with pytest.raises(CheckpointError, match="does not fit this run"):
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
