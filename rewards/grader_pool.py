"""Grading that always ends: answers of a model compared in processes that can be killed.

What takes no computer algebra is graded at once, by the caller. Everything else goes to a worker, forked from a parent that has imported
math-verify and sympy, with a deadline in CPU seconds that the kernel keeps, a wall clock behind it that the caller keeps, and a limit of
memory. What becomes of a comparison that is stopped:

- *wrong* where the gold had been read and evaluated, for then it is the answer that cannot be evaluated within the limits. Calling it
  unscorable would reward a model for answers that stop the grader.
- *unscorable* where the gold itself took too long, where the wall clock ran out (the machine is overloaded) or no worker was free in time,
  and where a worker died for another reason twice in a row.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from agentrl.rewards.grader_parent import GraderUnavailable, Parent, Worker
from agentrl.rewards.grader_process import GOLD_READ
from agentrl.rewards.grades import Grade
from agentrl.rewards.math_answer import Question, read, read_gold
from agentrl.rewards.math_compare import STRICT, Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CPU_S = 1.0
"""Of the formulas in this project's tests the slowest takes 0.3 s on a busy machine, the mean 0.01 s."""
WALL_S = 10.0
WAIT_S = 15.0
"""Longest wait of `shared_pool` for a free worker: with `WALL_S` it stays below the 30 s in which an environment must score."""
MEMORY_MIB = 1024
AHEAD = 64
"""Rows that `grade_each` reads beyond the one that it gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer to grade, and what it is held against."""

    gold: str
    answer: str
    policy: Policy = STRICT


class GraderPool:
    r"""Grades answers in processes of its own, which start with the first answer that needs one. For any number of threads at once.

    Args:
        workers: comparisons that run at the same time.
        cpu_s: CPU seconds of a comparison, and of reading a gold.
        wall_s: seconds on the clock for both, should a worker not get its share of a CPU.
        wait_s: longest wait for a free worker; without one an answer waits for those before it.
        memory_mib: memory of a worker beyond what it starts with.

    Example: `with GraderPool(workers=2) as pool: pool.grade(Pair(gold="1/2", answer="0.5"))`.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        cpu_s: float = CPU_S,
        wall_s: float = WALL_S,
        wait_s: float | None = None,
        memory_mib: int = MEMORY_MIB,
    ) -> None:
        if workers < 1 or not cpu_s > 0 or not wall_s > 0:
            raise ValueError(f"a GraderPool needs workers >= 1, cpu_s > 0 and wall_s > 0, got {workers}, {cpu_s} and {wall_s}")
        self.workers = workers
        self._cpu_s, self._wall_s, self._wait_s, self._memory_mib = cpu_s, wall_s, wait_s, memory_mib
        self._places: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._places.put(None)
        self._starting = threading.Lock()
        self._parent: Parent | None = None

    @property
    def process_id(self) -> int | None:
        """Of the process whose children the workers are; None where it does not run."""
        parent = self._parent
        return None if parent is None or parent.closed else parent.process_id

    def grade(self, pair: Pair) -> Grade:
        """Grade one answer. Raises `GraderUnavailable`."""
        found = read(gold=pair.gold, answer=pair.answer, policy=pair.policy)
        return found if isinstance(found, Grade) else self._decide(found)

    def grade_many(self, pairs: Iterable[Pair]) -> list[Grade]:
        """Grade answers, in order. Raises `GraderUnavailable`."""
        return list(self.grade_each(pairs))

    def grade_each(self, pairs: Iterable[Pair | Grade]) -> Iterator[Grade]:
        """Grade answers one after the other, in order, some ahead of the one that is given. Raises `GraderUnavailable`.

        What has been graded otherwise may stand among them.
        """
        waiting: deque[Grade | Future[Grade]] = deque()
        threads = ThreadPoolExecutor(self.workers, thread_name_prefix="grader")
        try:
            for pair in pairs:
                found = pair if isinstance(pair, Grade) else read(gold=pair.gold, answer=pair.answer, policy=pair.policy)
                waiting.append(found if isinstance(found, Grade) else threads.submit(self._decide, found))
                if len(waiting) > AHEAD:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def gold_fault(self, gold: str) -> str:
        """Why answers cannot be graded against a gold; empty where they can. Raises `GraderUnavailable`."""
        found = read_gold(gold)
        return (found if isinstance(found, Grade) else self._decide(found)).reason

    def close(self) -> None:
        """End the processes. A pool that is used again starts new ones."""
        with self._starting:
            parent, self._parent = self._parent, None
        if parent is not None:
            parent.close()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(self, question: Question) -> Grade:
        try:
            worker = self._places.get(timeout=self._wait_s)
        except queue.Empty:
            reason = f"the grader was busy for {self._wait_s:g} s"
            return Grade(verdict="unscorable", reason=reason, answer=question.said)
        free: Worker | None = None  # whatever stops a comparison, what is left of its worker is not used again
        try:
            for last in (False, True):
                worker = self._alive(worker)
                outcome = self._ask(worker, question)
                if isinstance(outcome, Grade):
                    free = worker
                    return outcome
                worker, grade = None, self._stopped(outcome, question, last=last)
                if grade is not None:
                    return grade
            raise AssertionError("the second try always has an outcome")
        finally:
            self._places.put(free)

    def _alive(self, worker: Worker | None) -> Worker:
        parent = self._running_parent()
        if worker is not None and worker.parent is parent:
            return worker
        if worker is not None:
            worker.connection.close()
        try:
            return parent.fork()
        except OSError:
            parent.close()  # it was ended, or hangs
        try:
            return self._running_parent().fork()
        except OSError as error:
            raise GraderUnavailable(f"the math grader's process starts and forks no worker: {error}") from error

    def _running_parent(self) -> Parent:
        with self._starting:
            if self._parent is None or self._parent.closed:
                self._parent = Parent(cpu_s=self._cpu_s, memory_mib=self._memory_mib)
            return self._parent

    def _ask(self, worker: Worker, question: Question) -> Grade | _Stopped:
        deadline = time.monotonic() + self._wall_s
        asked = {"gold": question.gold, "answer": question.answer, "policy": asdict(question.policy)}
        gold_read, late = False, False
        with contextlib.suppress(EOFError, OSError):
            worker.connection.send_bytes(json.dumps(asked).encode())
            while not (late := not worker.connection.poll(max(0.0, deadline - time.monotonic()))):
                said = worker.connection.recv_bytes()
                if said != GOLD_READ:
                    verdict, reason = json.loads(said)
                    return Grade(verdict=verdict, reason=reason, answer=question.said)
                gold_read = True
        worker.connection.close()
        return _Stopped(gold_read=gold_read, late=late, status=worker.parent.end(worker.pid))

    def _stopped(self, outcome: _Stopped, question: Question, *, last: bool) -> Grade | None:
        """The grade of a comparison that did not end; None where it is worth another try."""
        if outcome.late:
            reason = f"the comparison took longer than {self._wall_s:g} s on the clock: the machine is overloaded"
        elif outcome.status == -signal.SIGPROF:
            reason = f"{'the answer' if outcome.gold_read else 'the gold'} takes more than {self._cpu_s:g} CPU seconds to evaluate"
            return Grade(verdict="wrong" if outcome.gold_read else "unscorable", reason=reason, answer=question.said)
        elif last:
            reason = f"the grader died twice, with status {outcome.status}"
        else:
            return None
        return Grade(verdict="unscorable", reason=reason, answer=question.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stopped:
    """How a comparison was stopped."""

    gold_read: bool
    late: bool
    status: int


def _result(found: Grade | Future[Grade]) -> Grade:
    return found if isinstance(found, Grade) else found.result()


class _Shared:
    """The pool of this process; a process that was forked makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: GraderPool | None = None
        self._owner = 0

    def get(self) -> GraderPool:
        with self._lock:
            if self._pool is None or self._owner != os.getpid():
                self._pool, self._owner = GraderPool(wait_s=WAIT_S), os.getpid()
                atexit.register(self._pool.close)
            return self._pool


_shared = _Shared()


def shared_pool() -> GraderPool:
    """The pool that all rewards and environments of this process share; its processes end with this one."""
    return _shared.get()
