"""KV cache kept for the next turn of an episode, valid for the weights that computed it and for no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Tokens and their keys and values."""

    ids: np.ndarray
    """[length] int32."""
    layers: list[torch.Tensor]
    """[2, kv heads, length, dim] a layer."""
    nbytes: int


class PrefixStore:
    """The last call of each session, the least recently used forgotten first. Cleared by its owner when the weights change."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: dict[str, Prefix] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, session: str, ids: np.ndarray, token_bytes: int, read: Callable[[], list[torch.Tensor]]) -> None:
        """Keep the KV cache of `ids`, if it fits; `read` copies it out."""
        self._drop(session)
        nbytes = len(ids) * token_bytes
        if nbytes > self._most_bytes:
            return
        while self._bytes + nbytes > self._most_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[session] = Prefix(ids=ids.copy(), layers=read(), nbytes=nbytes)
        self._bytes += nbytes

    def take(self, session: str, ids: np.ndarray) -> tuple[Prefix, int] | None:
        """A session's cache and how many leading tokens it shares with `ids`; it is forgotten here, the new call will replace it."""
        prefix = self._kept.get(session)
        if prefix is None:
            return None
        self._drop(session)
        return prefix, common_length(prefix.ids, ids)

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self._kept.clear()
        self._bytes = 0

    def _drop(self, session: str) -> None:
        prefix = self._kept.pop(session, None)
        if prefix is not None:
            self._bytes -= prefix.nbytes


def common_length(left: np.ndarray, right: np.ndarray) -> int:
    """How many leading elements are equal."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
