"""What the candidate's objects said of their lengths: one that claims three items and yields none would pass loops that check each item.

Runs inside sandboxes: only the standard library.
"""

from __future__ import annotations


class Lengths:
    """Holds objects to their lengths, until the candidate is given an occasion to change them."""

    def __init__(self) -> None:
        self._said: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        self._sources: dict[int, int] = {}
        self._taken: dict[int, int] = {}

    def forget(self) -> None:
        """A call or an assignment may change any object."""
        self._said.clear()
        self._counted.clear()

    def said(self, owner: int, length: int) -> None:
        """An object has told its length. Raises `TypeError` where it told another before, or gave another number of items."""
        if self._said.setdefault(owner, length) != length or self._counted.get(owner, length) != length:
            raise TypeError("the candidate's object does not have the length that it claims")

    def started(self, owner: int, iterator: int) -> None:
        """An object has given an iterator, which may be itself."""
        self._sources[iterator] = owner
        self._taken[iterator] = 0

    def took(self, iterator: int) -> None:
        """An iterator has given an item."""
        self._taken[iterator] = self._taken.get(iterator, 0) + 1

    def ended(self, iterator: int) -> None:
        """An iterator has no more items. Raises `TypeError` where its object had told another length."""
        owner, count = self._sources.get(iterator, iterator), self._taken.pop(iterator, 0)
        self._counted.setdefault(owner, count)
        if self._said.get(owner, count) != count:
            raise TypeError("the candidate's object does not have the length that it claims")
