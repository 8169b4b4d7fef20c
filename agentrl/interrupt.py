"""Ctrl-C, SIGTERM and a closed terminal during a run: they take effect where nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Abandoned(KeyboardInterrupt):
    """A second Ctrl-C: nothing more is written, because it may have broken off a step half done."""


class Interrupt:
    """SIGINT, SIGTERM and SIGHUP: the first ends the run at the next safe point, with a checkpoint; the second at once."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    def __call__(self, number: int, frame: object) -> None:
        """The signal handler; runs in the main thread between two bytecodes."""
        again, self.requested = self.requested, True
        if again:
            raise Abandoned
        if self._waiting:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that a signal may break off: nothing in it changes the learner."""
        if self.requested:
            raise KeyboardInterrupt
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block; outside the main thread nothing can be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
