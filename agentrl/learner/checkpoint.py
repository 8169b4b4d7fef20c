"""The learner's state on disk: whole tensors by name, so that a checkpoint does not depend on how many ranks wrote it, or how they shard.

A folder holds `weights.safetensors` (what is trained: all parameters, or the adapter), `optimizer.pt` (tensors by parameter name),
and `learner.json` (step, random states). The learning rate follows from the step.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from agentrl.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.learner.model import Policy

SCHEMA_VERSION = 1

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.pt", "learner.json"


def save(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, step: int, *, writes: bool) -> None:
    """Write the state; a collective, in which the rank with `writes` writes.

    Raises `CheckpointError` where the disk refuses, and then leaves what it wrote.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights = get_model_state_dict(policy, options=options)
    moments = get_optimizer_state_dict(policy, optimizer, options=options)
    if not writes:
        return
    names = _trained_names(policy)  # a tied weight comes under one of its names only
    kept = {name: tensor.contiguous() for name, tensor in weights.items() if name in names and isinstance(tensor, torch.Tensor)}
    state = {"schema_version": SCHEMA_VERSION, "step": step, "random": _random_state()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder / WEIGHTS)
        torch.save(moments, folder / OPTIMIZER)
        (folder / STATE).write_text(json.dumps(state))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write a checkpoint to {folder}: {error}") from error


def load(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> int:
    """Read the state back on every rank and return the step. Raises `CheckpointError` that names the file which is missing or wrong."""
    for name in (WEIGHTS, OPTIMIZER, STATE):
        if not (folder / name).exists():
            raise CheckpointError(f"checkpoint {folder} has no {name}: it was not written whole, or it is not a checkpoint")
    state = _read(folder / STATE, lambda path: json.loads(path.read_text()))
    weights = _read(folder / WEIGHTS, load_file)
    moments = _read(folder / OPTIMIZER, lambda path: torch.load(path, weights_only=True))
    if state.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{folder / STATE} has schema version {state.get('schema_version')}; this agentrl reads {SCHEMA_VERSION}")
    expected = _trained_names(policy)
    if expected != set(weights):
        some = sorted(expected ^ set(weights))[:3]
        raise CheckpointError(
            f"{folder / WEIGHTS} holds other weights than the model trains, such as {', '.join(some)}: model or learner.lora changed"
        )
    try:
        set_model_state_dict(policy, weights, options=StateDictOptions(full_state_dict=True, strict=False))
        set_optimizer_state_dict(policy, optimizer, moments, options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True))
        _restore_random(state["random"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit this run: {error}") from error
    return int(state["step"])


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except Exception as error:  # each format has its own errors, and all of them mean this
        raise CheckpointError(f"checkpoint file {path} does not read back: {error}") from error


def _trained_names(policy: Policy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def _random_state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    inner = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {"key": inner["key"].tolist(), "pos": inner["pos"]}},
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _restore_random(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state(state["numpy"] | {"state": {"key": np.array(inner["key"], dtype=np.uint32), "pos": inner["pos"]}})
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]])
