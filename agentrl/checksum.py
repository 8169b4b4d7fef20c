"""One checksum for the weights of a model, computed by the sender and again by the engine over what it holds.

XXH3 (https://xxhash.com) runs at memory bandwidth. It guards against mistakes, not against an adversary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable


class Checksum:
    """Collects tensors in any order; equal sets of (name, shape, type, bytes) give equal checksums."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor, on any device; raises `ValueError` where its name came before."""
        if name in self._digests:
            raise ValueError(f"weight {name!r} came twice")
        digest = xxhash.xxh3_128(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(raw_bytes(tensor))
        self._digests[name] = digest.digest()

    def hexdigest(self) -> str:
        """The checksum of everything added so far: 32 hexadecimal digits."""
        whole = xxhash.xxh3_128()
        for name in sorted(self._digests):
            whole.update(name.encode() + b"\0" + self._digests[name])
        return whole.hexdigest()


def weights_checksum(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None) -> str:
    """Checksum of a whole stream of (name, tensor).

    Args:
        weights: in any order.
        dtype: floating tensors are converted to it first, as they are on their way to an engine of that type; None keeps theirs.
    """
    checksum = Checksum()
    for name, tensor in weights:
        checksum.add(name, converted(tensor, dtype))
    return checksum.hexdigest()


def converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor in the type that an engine holds: `dtype` where it is a floating one, its own otherwise."""
    tensor = tensor.detach()
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; copies only what lies on a device or is not contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
