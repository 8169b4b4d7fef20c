"""The processes that train one model together, under Accelerate: who they are, how they share the model, what they tell each other."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import accelerate  # type: ignore[import-untyped]
import torch
from torch.distributed.tensor import DTensor

from agentrl import wire
from agentrl.errors import ConfigError
from agentrl.records import Group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from accelerate import Accelerator

    from agentrl.config import RunConfig

T = TypeVar("T")


def start(config: RunConfig) -> Accelerator:
    """Join the ranks that `accelerate launch` or torchrun started, or be the only one.

    Raises `ConfigError` for a device that is not there.
    """
    if config.learner.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("learner.device is cuda, and torch finds no CUDA device here; set learner.device to auto or cpu")
    on_cpu = config.learner.device == "cpu" or (config.learner.device == "auto" and not torch.cuda.is_available())
    return accelerate.Accelerator(cpu=on_cpu)


def check(config: RunConfig, accelerator: Accelerator) -> None:
    """Raise `ConfigError` where launcher and run file disagree."""
    if config.learner.ranks != accelerator.num_processes:
        raise ConfigError(
            f"learner.ranks={config.learner.ranks}, but {accelerator.num_processes} learner processes were started; "
            f"set learner.ranks={accelerator.num_processes}, or start with `accelerate launch --multi_gpu --num_processes "
            f"{config.learner.ranks}`, on CPUs too: accelerate's --cpu alone starts one process"
        )
    kind = accelerator.distributed_type
    if kind not in (accelerate.DistributedType.NO, accelerate.DistributedType.MULTI_CPU, accelerate.DistributedType.MULTI_GPU):
        raise ConfigError(
            f"accelerate was configured for {kind.value}; the learner shards by itself: launch plain processes "
            "(`accelerate launch --num_processes N`, no FSDP or DeepSpeed options) and choose learner.sharding"
        )


def shard(policy: torch.nn.Module, accelerator: Accelerator, *, dtype: torch.dtype) -> None:
    """Split the parameters over the ranks in place (FSDP2): layer by layer, and what is left at the root."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if dtype == torch.bfloat16 else MixedPrecisionPolicy()
    for layer in [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    fully_shard(policy, mesh=mesh, mp_policy=mixed)


def reshard(model: object) -> None:
    """Give up the whole parameters that a forward pass without a backward pass leaves at the root of a sharded model."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()


def replicate(policy: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """A model under DDP: every rank holds it whole."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(policy, device_ids=devices)


def accumulating(model: torch.nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: DDP exchanges gradients on the last one only.

    FSDP2 reduces each time, since the gradients that it would keep are not sharded.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all of it where the ranks hold shards: then a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_messages(accelerator: Accelerator, message: T, kind: type[T]) -> list[T]:
    """Each rank's message on every rank, in rank order and in the wire format; a collective."""
    if accelerator.num_processes == 1:
        return [message]
    frame = torch.frombuffer(bytearray(wire.pack(message)), dtype=torch.uint8).to(accelerator.device)
    sizes = accelerator.gather(torch.tensor([len(frame)], device=accelerator.device)).tolist()
    padded = frame.new_zeros(max(sizes))
    padded[: len(frame)] = frame
    parts = accelerator.gather(padded).cpu().split(max(sizes))
    parser = wire.Parser[T](kind)
    return [one for part, size in zip(parts, sizes, strict=True) for one in parser.feed(part[:size].numpy().tobytes())]


def any_of(accelerator: Accelerator, value: bool) -> bool:
    """Whether it holds on any rank; a collective."""
    if accelerator.num_processes == 1:
        return value
    return bool(accelerator.gather(torch.tensor([value], device=accelerator.device)).any())


def broadcast_groups(accelerator: Accelerator, groups: Sequence[Group] | None) -> tuple[Group, ...]:
    """The main process's groups on every rank, in the wire format; the other ranks pass None and wait here. Groups may be none."""
    if accelerator.num_processes == 1:
        assert groups is not None
        return tuple(groups)
    mine = b"".join(wire.pack(group) for group in groups) if accelerator.is_main_process and groups is not None else b""
    size = torch.tensor([len(mine)], device=accelerator.device)
    torch.distributed.broadcast(size, 0)
    if not int(size):
        return ()
    data = torch.empty(int(size), dtype=torch.uint8)
    if mine:
        data = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    data = data.to(accelerator.device)
    torch.distributed.broadcast(data, 0)
    return tuple(groups) if groups is not None else tuple(wire.Parser[Group](Group).feed(data.cpu().numpy().tobytes()))
