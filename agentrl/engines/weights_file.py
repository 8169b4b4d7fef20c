"""Weights on their way from the learner to an engine on the same machine: a safetensors file in memory, written as a stream."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from typing import TYPE_CHECKING

import torch

from agentrl.checksum import Checksum, converted, raw_bytes
from agentrl.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

    from agentrl.engines.messages import Hello

_HEADER_BYTES_PER_WEIGHT = 512
_LENGTH = struct.Struct("<Q")
_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the safetensors format (https://github.com/huggingface/safetensors)."""


class WeightsFile:
    """A context manager around the file, which is gone afterwards.

    On Linux it has no name and lives in memory, so that not even `kill -9` leaves it behind and the size of /dev/shm does not matter.

    Args:
        hello: the engine's greeting.
        folder: for the file where it has to have a name; by default the one for temporary files.
    """

    def __init__(self, hello: Hello, folder: Path | None = None) -> None:
        self._folder = folder
        self._dtype: torch.dtype = getattr(torch, hello.dtype)
        self._header_room = 4096 + _HEADER_BYTES_PER_WEIGHT * hello.num_weights
        self._checksum = Checksum()
        self._named = ""
        self.path = ""
        """Where the engine can open it."""

    def __enter__(self) -> WeightsFile:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("agentrl-weights")
            self.path = f"/proc/{os.getpid()}/fd/{fd}"
        else:
            fd, self.path = tempfile.mkstemp(prefix="agentrl-weights-", dir=self._folder)
            self._named = self.path
        self._file: BinaryIO = os.fdopen(fd, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._named:
            os.unlink(self._named)

    @property
    def checksum(self) -> str:
        """Of what was written."""
        return self._checksum.hexdigest()

    def write(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write a stream of (name, tensor), one tensor in memory at a time; floating ones in the engine's type.

        The header has to come first and is known last, so room is left for it. Raises `PublishError` for a name that comes twice.
        """
        header: dict[str, object] = {}
        start = _LENGTH.size + self._header_room
        self._file.seek(start)
        offset = 0
        for name, tensor in weights:
            tensor = converted(tensor, self._dtype)
            try:
                self._checksum.add(name, tensor)
            except ValueError as error:
                raise PublishError(str(error)) from None
            data = raw_bytes(tensor)
            self._file.write(data)
            header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > self._header_room:
            raise PublishError(f"{len(header)} weights were sent, far more than the engine's model has")
        self._file.seek(0)
        self._file.write(_LENGTH.pack(self._header_room) + text.ljust(self._header_room))
        self._file.flush()
