"""Where an update's tensors come from: files, memory shared on one host, or a connection to the learner."""

from __future__ import annotations

import mmap
import os
import socket
from typing import TYPE_CHECKING, Any

from agentrl import transfer_format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

SILENCE_S = 60.0
"""Longest wait for the learner's next bytes; the requests stand still meanwhile."""


def from_files(paths: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of safetensors files, mapped into memory."""
    from safetensors import safe_open

    if not paths:
        raise ValueError("an update of kind 'file' names no paths")
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f"{path}: no such file on the server's machine; learner and server must share engine.transfer_dir")
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                yield name, file.get_tensor(name)


def from_shared_memory(path: str, layout: Sequence[Sequence[Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that lie in one file, usually of /dev/shm; they share its memory and must not outlive the update.

    Args:
        path: the file.
        layout: (name, dtype, shape, offset in bytes) of each tensor.
    """
    try:
        with open(path, "rb") as file:
            # a private mapping: tensors want memory that could be written to, and nobody's bytes may change by that
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be mapped ({error}); shared memory reaches servers on the learner's machine only") from None
    for name, dtype, shape, offset in layout:
        yield str(name), transfer_format.tensor_from(memory, dtype, list(shape), int(offset))


def from_learner(host: str, port: int, token: str, rank: int, world_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that the learner sends over a connection which this worker opens.

    Args:
        host: where the learner listens.
        port: where the learner listens.
        token: proves to the learner that it was told about this update.
        rank: of this worker among all that serve one model.
        world_size: how many those are.
    """
    if not host or not port:
        raise ValueError("an update of kind 'tcp' needs host and port, here or in init_info")
    with socket.create_connection((host, port), timeout=SILENCE_S) as peer:
        transfer_format.send_header(peer, {"token": token, "rank": rank, "world_size": world_size})
        yield from transfer_format.receive_tensors(peer)
