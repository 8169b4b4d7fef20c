"""A folder that learner and servers share, and the weights that are written to it.

Tensors are written as a stream, one in memory at a time, into files of the safetensors format (its names and layout:
https://github.com/huggingface/safetensors). A server on the same machine may map them, another one reads them as files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import struct
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError, PublishError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future
    from typing import BinaryIO

    import torch

MARKER = "agentrl-marker-"
"""Start of the name of a file that a server is asked to read, to see whether it shares the folder."""
WEIGHTS_PER_FILE = 4096
MOST_PENDING = 4
"""Tensors that wait for their checksum while later ones are written."""
HEADER_ROOM = 2 << 20
"""Bytes kept for a file's header, which comes first and is known last: 512 for each weight."""
_LENGTH = struct.Struct("<Q")
_TYPES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}

IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A tensor in a file."""

    name: str
    dtype: str
    """As torch writes it: `float32`."""
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Of its first byte in the file."""
    num_bytes: int


class SharedFolder:
    """A folder of this run's own below one that servers can read; removed at the end, and after a `kill -9` by the next run here."""

    def __init__(self, parent: str | None = None) -> None:
        where = Path(parent) if parent else IN_MEMORY if IN_MEMORY.is_dir() else Path(tempfile.gettempdir())
        host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
        try:
            where.mkdir(parents=True, exist_ok=True)
            _remove_orphans(where, host)
            self.path = where / f"agentrl-{host}-{os.getpid()}-{secrets.token_hex(4)}"
            self.path.mkdir()
            self.marker = self.path / f"{MARKER}{secrets.token_hex(8)}"
            self.marker.write_text(self.marker.name)
        except OSError as error:
            raise ConfigError(
                f"engine.transfer_dir: cannot write to {where}: {error}. Name a folder that this machine can write and the vLLM servers "
                "can read, under the same path on both"
            ) from error

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_orphans(where: Path, host: str) -> None:
    """Remove what runs on this machine left behind that could not do it themselves."""
    for folder in where.glob(f"agentrl-{host}-*-*"):
        pid = folder.name.split("-")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A version in a folder."""

    placed: tuple[Placed, ...]
    """Every tensor, in the order in which they came."""
    checksum: str
    """As `agentrl.transfer_format.Receipt` computes it, and the servers over what they loaded."""


def write_weights(folder: Path, weights: Iterable[tuple[str, torch.Tensor]], dtype: str | None) -> Written:
    """Write a stream of weights into a new folder; floating ones in `dtype`, or in their own where it is None.

    Raises `PublishError` for a name that comes twice, a type without a name in the format, or a disk that refuses.
    """
    from agentrl.transfer_format import Receipt

    placed: list[Placed] = []
    receipt = Receipt()
    with contextlib.ExitStack() as files, ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights-checksum") as hashing:
        pending: deque[Future[None]] = deque()
        writer: _Writer | None = None
        try:
            folder.mkdir(exist_ok=True)
            for name, tensor in _converted(weights, dtype):
                if writer is None or writer.full:
                    writer = files.enter_context(_Writer(folder / f"weights-{len(placed)}.safetensors"))
                pending.append(hashing.submit(receipt.add, name, tensor))
                placed.append(writer.add(name, tensor))
                if len(pending) > MOST_PENDING:
                    pending.popleft().result()
            for one in pending:
                one.result()
        except OSError as error:
            raise PublishError(f"no room in {folder.parent} for the weights on their way to the servers: {error}") from error
    return Written(placed=tuple(placed), checksum=receipt.hexdigest())


def _converted(weights: Iterable[tuple[str, torch.Tensor]], dtype: str | None) -> Iterator[tuple[str, torch.Tensor]]:
    from agentrl.checksum import converted
    from agentrl.transfer_format import dtype_named

    kind = None if dtype is None else dtype_named(dtype)
    seen = set()
    for name, tensor in weights:
        if name in seen:
            raise PublishError(f"weight {name!r} was sent twice; a tied weight is sent once, under one name")
        seen.add(name)
        yield name, converted(tensor, kind).cpu().contiguous()


class _Writer:
    """One file of weights, a context manager: the header is written on exit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: dict[str, object] = {}
        self._at = 0

    def __enter__(self) -> _Writer:
        self._file: BinaryIO = self._path.open("r+b" if self._path.exists() else "wb")
        self._file.seek(_LENGTH.size + HEADER_ROOM)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._finish()

    @property
    def full(self) -> bool:
        return len(self._header) >= WEIGHTS_PER_FILE

    def add(self, name: str, tensor: torch.Tensor) -> Placed:
        from agentrl.transfer_format import dtype_name, tensor_bytes

        dtype = dtype_name(tensor.dtype)
        if dtype not in _TYPES:
            raise PublishError(f"weight {name!r} is of type {dtype}, which cannot be sent; allowed are {', '.join(_TYPES)}")
        data = tensor_bytes(tensor)
        self._file.write(data)
        start, self._at = self._at, self._at + len(data)
        self._header[name] = {"dtype": _TYPES[dtype], "shape": list(tensor.shape), "data_offsets": [start, self._at]}
        offset = _LENGTH.size + HEADER_ROOM + start
        return Placed(name=name, dtype=dtype, shape=tuple(tensor.shape), path=self._path, offset=offset, num_bytes=len(data))

    def _finish(self) -> None:
        text = json.dumps(self._header, separators=(",", ":")).encode()
        if len(text) > HEADER_ROOM:
            raise PublishError(
                f"the names of {len(self._header)} weights need {len(text)} bytes, more than the {HEADER_ROOM} kept for them"
            )
        self._file.truncate(_LENGTH.size + HEADER_ROOM + self._at)
        self._file.seek(0)
        self._file.write(_LENGTH.pack(HEADER_ROOM) + text.ljust(HEADER_ROOM))
