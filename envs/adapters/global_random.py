"""The global random generators of `random` and numpy, for libraries that draw from them: each user sees a stream of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_HELD = threading.RLock()
"""Episodes share their process, one thread each."""


class Dice:
    """A stream of the global generators that goes on where it was left, whatever others drew in between.

    Example: `with Dice(seed).held(): library.step()`.
    """

    def __init__(self, seed: int) -> None:
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed % 2**32).get_state()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put this stream in place of the global ones, and theirs back at the end; other threads that want to hold dice wait."""
        with _HELD:
            others = random.getstate(), np.random.get_state()
            random.setstate(self._python)
            np.random.set_state(self._numpy)
            try:
                yield
            finally:
                self._python, self._numpy = random.getstate(), np.random.get_state()
                random.setstate(others[0])
                np.random.set_state(others[1])
