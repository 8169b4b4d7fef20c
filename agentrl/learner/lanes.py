"""Threads that compute the micro-batches of a step side by side on a CPU, so that a step ends the same whoever computed what.

A small model's products are too small for torch to share among threads: two lanes of one thread each do nearly twice the work, two
threads on each product do less than one. Lanes take micro-batches in order, and results are added up in order too, so that every bit of
the sum is that of one thread, however many lanes there were and however they took turns.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LANE_PARAMETERS = 8_000_000
"""Trained parameters up to which micro-batches are computed side by side on a CPU. Each lane holds gradients of its own, and a larger
model's products are large enough for torch to share each among all threads."""


class Lanes:
    """The calling thread and `own - 1` others that always compute, and `spare` ones that do while they are told that they may.

    Each computes with one thread of torch's.
    """

    def __init__(self, own: int, spare: int) -> None:
        self._own, self._spare = own, spare
        self._line: _Line[Any] | None = None
        self._pool = ThreadPoolExecutor(own + spare - 1, thread_name_prefix="lane", initializer=torch.set_num_threads, initargs=(1,))

    def run(self, count: int, work: Callable[[int], T], merge: Callable[[T], None], *, spare_free: Callable[[], bool]) -> None:
        """Call `work(i)` for each i below `count`, and `merge` with each result, in order of i and never twice at once.

        `spare_free` is asked, between two items, whether the spare lanes may take one. The first error of any lane is raised once
        every lane has stopped; what follows it is not merged.
        """
        line = self._line = _Line(count, work, merge, most_ahead=2 * (self._own + self._spare))
        others = [self._pool.submit(line.lane, None) for _ in range(min(self._own - 1, count))]
        others += [self._pool.submit(line.lane, spare_free) for _ in range(min(self._spare, count))]
        try:
            line.lane(None)
        finally:
            self._line = None
            line.stop()
            for other in others:
                other.exception()  # waits; the error itself is in the line
        if line.error is not None:
            raise line.error

    def wake(self) -> None:
        """Have `spare_free` asked again, where a spare lane waits; from any thread."""
        line = self._line
        if line is not None:
            line.wake()


def in_turn(lanes: Lanes | None, count: int, work: Callable[[int], T], merge: Callable[[T], None]) -> None:
    """Call `work(i)` for each i below `count` and `merge` with each result, in order; in lanes where there are any."""
    if lanes is not None:
        lanes.run(count, work, merge, spare_free=lambda: True)
        return
    for index in range(count):
        merge(work(index))


class _Line(Generic[T]):
    """Items of one run: which comes next, and which results wait for an earlier one."""

    def __init__(self, count: int, work: Callable[[int], T], merge: Callable[[T], None], *, most_ahead: int) -> None:
        self._count, self._work, self._merge = count, work, merge
        self._most_ahead = most_ahead
        """Items that may be taken beyond the first that is not merged: each unmerged one holds a copy of the gradients."""
        self._changed = threading.Condition()
        self._taken = 0
        self._merged = 0
        self._results: dict[int, T] = {}
        self.error: BaseException | None = None

    def lane(self, may_take: Callable[[], bool] | None) -> None:
        """Compute items until there are none."""
        while (index := self._take(may_take)) is not None:
            try:
                result = self._work(index)
                with self._changed:
                    self._results[index] = result
                    while self._merged in self._results and self.error is None:
                        self._merge(self._results.pop(self._merged))
                        self._merged += 1
                    self._changed.notify_all()
            except BaseException as error:  # whatever it is, it ends the other lanes too and is raised by `run`
                with self._changed:
                    self.error = self.error or error
                    self._changed.notify_all()

    def _take(self, may_take: Callable[[], bool] | None) -> int | None:
        with self._changed:
            while self.error is None and self._taken < self._count:
                if self._taken < self._merged + self._most_ahead and (may_take is None or may_take()):
                    self._taken += 1
                    return self._taken - 1
                self._changed.wait()  # a lane that has done an item says so, and one always has an item
            return None

    def wake(self) -> None:
        """Let waiting lanes look again."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Let no lane take another item."""
        with self._changed:
            self._taken = self._count
            self._changed.notify_all()


def lanes_where_they_help(parameters: int | None, threads: int | None, spare: int) -> Lanes | None:
    """Lanes for a small model; else the threads are torch's.

    Args:
        parameters: how many are trained, on a CPU and one rank; None anywhere else.
        threads: that are the learner's own; None leaves torch as it is.
        spare: threads more that it may use for a while.
    """
    if threads is None:
        return None
    helps = parameters is not None and parameters <= LANE_PARAMETERS and threads + spare > 1
    torch.set_num_threads(1 if helps else threads)
    return Lanes(threads, spare) if helps else None
