"""The learner's state on disk: whole tensors by name, so that a checkpoint does not depend on how many ranks wrote it, or how they shard.

A folder holds `weights.safetensors` (what is trained: all parameters, or the adapter), `optimizer.pt` (tensors by parameter name),
and `learner.json` (step, what the objective adapts, random states); a critic of its own and a reference that moves have folders of their
own in it, and averages of the weights a file. The learning rate follows from the step.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from agentrl.errors import CheckpointError
from agentrl.learner.ranks import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SCHEMA_VERSION = 1

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.pt", "learner.json"


def save_model(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, *, writes: bool) -> None:
    """Write what is trained of a model and its optimizer's state, or all of a model that nothing steps; a collective.

    The rank with `writes` writes. Raises `CheckpointError` where the disk refuses, and then leaves what it wrote.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=optimizer is not None)
    weights = get_model_state_dict(model, options=options)
    moments = None if optimizer is None else _moments(model, optimizer)
    if not writes:
        return
    names = _kept_names(model, optimizer)  # a tied weight comes under one of its names only
    kept = {name: tensor.contiguous() for name, tensor in weights.items() if name in names and isinstance(tensor, torch.Tensor)}
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder / WEIGHTS)
        if moments is not None:
            torch.save({"state": moments}, folder / OPTIMIZER)


def save_state(folder: Path, step: int, objective: Mapping[str, float], *, writes: bool) -> None:
    """Write the step, what the objective adapts, and the random states."""
    if writes:
        state = {"schema_version": SCHEMA_VERSION, "step": step, "objective": dict(objective), "random": _random_state()}
        with _writing(folder):
            (folder / STATE).write_text(json.dumps(state))


def load_model(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Read a model back on every rank. Raises `CheckpointError` that names the file which is missing or wrong."""
    _check_there(folder, [WEIGHTS] + ([OPTIMIZER] if optimizer is not None else []))
    weights = _read(folder / WEIGHTS, load_file)
    expected = _kept_names(model, optimizer)
    if expected != set(weights):
        some = sorted(expected ^ set(weights))[:3]
        raise CheckpointError(
            f"{folder / WEIGHTS} holds other weights than the model trains, such as {', '.join(some)}: model, learner.lora or the "
            "objective changed"
        )
    with _fitting(folder):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))
        if optimizer is not None:
            _restore_moments(model, optimizer, _read(folder / OPTIMIZER, lambda path: torch.load(path, weights_only=True))["state"])


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, writes: bool) -> None:
    """Write tensors, whole, by name; a collective where the ranks hold shards. Raises `CheckpointError` where the disk refuses."""
    kept = {name: whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}
    if writes:
        with _writing(path.parent):
            save_file(kept, path)


def load_tensors(path: Path, tensors: Mapping[str, torch.Tensor] | None, key: str) -> None:
    """Read tensors back in place, on every rank; None for a run that keeps none.

    Raises `CheckpointError` where the run and the checkpoint differ in whether they keep them, or in what they are; `key` is the run
    file's key that decides.
    """
    if tensors is None:
        if path.exists():
            raise CheckpointError(f"checkpoint {path.parent} holds {path.name}, and this run keeps no such thing: set {key} as it was")
        return
    if not path.exists():
        raise CheckpointError(f"checkpoint {path.parent} has no {path.name}, and this run keeps one: {key} changed")
    found = _read(path, load_file)
    if found.keys() != tensors.keys():
        some = ", ".join(sorted(found.keys() ^ tensors.keys())[:3])
        raise CheckpointError(f"{path} holds other tensors than this run keeps, such as {some}: {key} or what is trained changed")
    with _fitting(path.parent), torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(_placed(found[name], tensor))


def load_state(folder: Path) -> tuple[int, dict[str, float]]:
    """The step, and what the objective had adapted; the random states are put back. Raises `CheckpointError`."""
    _check_there(folder, [WEIGHTS, OPTIMIZER, STATE])
    state = _read(folder / STATE, lambda path: json.loads(path.read_text()))
    if state.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{folder / STATE} has schema version {state.get('schema_version')}; this agentrl reads {SCHEMA_VERSION}")
    with _fitting(folder):
        _restore_random(state["random"])
        return int(state["step"]), dict(state.get("objective", {}))


def _moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """What the optimizer keeps of each parameter that it has ever stepped, whole, by the parameter's name; a collective.

    Not torch's own function for it, which steps a fresh optimizer to have something to write, so that the next real step is another.
    """
    return {
        name: {key: whole(value).cpu() for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def _restore_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, kept in moments.items():
        optimizer.state[parameters[name]] = {key: _placed(value, parameters[name]) for key, value in kept.items()}


def _placed(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Where the parameter is, and in its shards; a count of steps is a number on every rank."""
    value = value.to(parameter.device)
    if not value.ndim:
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"moments of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)  # every rank has read all of it


def _check_there(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"checkpoint {folder} has no {name}: it was not written whole, or it is not a checkpoint")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write a checkpoint to {folder}: {error}") from error


@contextlib.contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit this run: {_shortly(error)}") from error


def _shortly(error: Exception) -> str:
    """What torch says, of tensors that do not fit the first one alone."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[:2]) + (f" ... and {len(lines) - 2} more" if len(lines) > 2 else "")


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except Exception as error:  # each format has its own errors, and all of them mean this
        raise CheckpointError(f"checkpoint file {path} does not read back: {error}") from error


def _kept_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad or optimizer is None}


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
