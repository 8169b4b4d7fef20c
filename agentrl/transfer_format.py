"""How tensors travel from a learner to the plugin in a vLLM server: names of types, the stream over TCP, and the receipt.

Both ends use this module. The server's environment has torch but not all that agentrl needs, so nothing else is imported.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

MAX_HEADER = 1 << 20
"""Longest header of a frame in bytes: a longer one means that the peer speaks something else."""
ROW_BYTES = 8192
_ROWS_AT_ONCE = 64
"""Half a megabyte, which stays in a core's cache between the two sums."""
_LENGTH = struct.Struct("!I")


class Receipt:
    """Collects tensors in any order; equal sets of (name, type, shape, bytes) give equal checksums.

    SHA-256 over, for each tensor in ascending name order, its name, type and shape, each followed by NUL, and its `fingerprint`.
    """

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor, on any device; raises `ValueError` where its name came before."""
        if name in self._entries:
            raise ValueError(f"weight {name!r} came twice in one update")
        head = f"{name}\0{dtype_name(tensor.dtype)}\0{','.join(map(str, tensor.shape))}\0".encode()
        self._entries[name] = head + fingerprint(tensor)

    def names(self) -> frozenset[str]:
        """The names added so far."""
        return frozenset(self._entries)

    def hexdigest(self) -> str:
        """The checksum of everything added so far: 64 hexadecimal digits."""
        whole = hashlib.sha256()
        for name in sorted(self._entries):
            whole.update(self._entries[name])
        return whole.hexdigest()


def fingerprint(tensor: torch.Tensor) -> bytes:
    """32 bytes that differ where the bytes of two tensors do, made at the speed of memory.

    The bytes are laid out as rows of 1024 integers of 8 bytes; the SHA-256 of the last, shorter row is continued with the sums of all
    columns, then with those of all rows, modulo 2**64. Requests may stand still meanwhile, and SHA-256 over everything ran at 1 GB/s where
    this runs at 6. It guards against mistakes, not against an adversary.
    """
    data = np.frombuffer(tensor_bytes(tensor), dtype=np.uint8)
    whole = len(data) // ROW_BYTES * ROW_BYTES
    digest = hashlib.sha256(data[whole:].tobytes())
    rows = data[:whole].view("<u8").reshape(-1, ROW_BYTES // 8)
    columns, sums = np.zeros(ROW_BYTES // 8, dtype="<u8"), []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        columns += part.sum(0)
        sums.append(part.sum(1))
    if sums:
        digest.update(columns.tobytes() + np.concatenate(sums).tobytes())
    return digest.digest()


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The type of that name; raises `ValueError` where torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no type of torch; float32 and bfloat16 are")
    return dtype


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; copies only what lies on a device or is not contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def tensor_from(buffer: bytearray | memoryview, dtype: str, shape: list[int], offset: int = 0) -> torch.Tensor:
    """A tensor that shares memory with a buffer.

    Args:
        buffer: must stay as it is while the tensor is used.
        dtype: such as `float32`.
        shape: of the tensor.
        offset: in bytes.
    """
    kind = dtype_named(dtype)
    count = num_elements(shape)
    if offset < 0 or offset + count * kind.itemsize > len(buffer):
        raise ValueError(f"a {dtype} of shape {shape} at byte {offset} does not fit into {len(buffer)} bytes")
    if not count:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind, count=count, offset=offset).view(shape)


def num_elements(shape: list[int]) -> int:
    """Product of the sizes; 1 for a scalar."""
    count = 1
    for size in shape:
        count *= size
    return count


def send_header(peer: socket.socket, header: Mapping[str, Any]) -> None:
    """Send one JSON object with its length in front."""
    text = json.dumps(header).encode()
    peer.sendall(_LENGTH.pack(len(text)) + text)


def receive_header(peer: socket.socket) -> dict[str, Any] | None:
    """The next JSON object; None where the stream ends as agreed. Raises `ConnectionError` where it breaks off or is something else."""
    (length,) = _LENGTH.unpack(_receive(peer, _LENGTH.size))
    if not length:
        return None
    if length > MAX_HEADER:
        raise ConnectionError(f"a header of {length} bytes: the peer is no agentrl of this version")
    try:
        header = json.loads(_receive(peer, length))
    except ValueError as error:
        raise ConnectionError(f"a header that is no JSON ({error}): the peer is no agentrl of this version") from None
    if not isinstance(header, dict):
        raise ConnectionError("a header that is no JSON object: the peer is no agentrl of this version")
    return header


def send_tensor(peer: socket.socket, name: str, tensor: torch.Tensor) -> None:
    """Send one tensor: its header, then its bytes."""
    content = tensor_bytes(tensor)
    send_header(peer, {"name": name, "dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "nbytes": content.nbytes})
    peer.sendall(content)


def send_end(peer: socket.socket) -> None:
    """Say that no more tensors come."""
    peer.sendall(_LENGTH.pack(0))


def receive_tensors(peer: socket.socket) -> Iterator[tuple[str, torch.Tensor]]:
    """Read (name, tensor) until the sender says that it is done; each tensor has memory of its own."""
    while (header := receive_header(peer)) is not None:
        try:
            name, dtype, shape, nbytes = str(header["name"]), str(header["dtype"]), list(header["shape"]), int(header["nbytes"])
        except (KeyError, TypeError, ValueError):
            raise ConnectionError(f"a header without name, dtype, shape and nbytes: {header}") from None
        if nbytes != num_elements(shape) * dtype_named(dtype).itemsize:
            raise ConnectionError(f"{name}: {nbytes} bytes are no {dtype} of shape {shape}")
        yield name, tensor_from(_receive(peer, nbytes), dtype, shape)


def _receive(peer: socket.socket, count: int) -> bytearray:
    content = bytearray(count)
    view, done = memoryview(content), 0
    while done < count:
        got = peer.recv_into(view[done:])
        if not got:
            raise ConnectionError(f"the other side closed the connection {count - done} bytes too early")
        done += got
    return content
