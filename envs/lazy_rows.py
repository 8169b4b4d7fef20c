"""Rows that are made, or fetched, when somebody asks for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, overload


class LazyRows(Sequence[Mapping[str, Any]]):
    """A sequence of which a subclass gives the length and single rows; it may hold millions."""

    __slots__ = ()

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """The row with this number, from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        chosen = range(len(self))[index]
        return [self.row(at) for at in chosen] if isinstance(chosen, range) else self.row(chosen)
