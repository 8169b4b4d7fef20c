"""The processes in which formulas are compared: a preloaded parent, and the workers that it forks.

`python -m agentrl.rewards.grader_process FD` imports computer algebra once, then does what its socket asks, until that closes: `fork` a
worker that serves the socket sent along, or `end` a worker, that is, kill and reap it. It never grades, so it always answers at once.

Each comparison runs under a kernel timer that counts the worker's CPU time and ends it: nothing that hangs outlives its deadline,
even if whoever asked is long gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from agentrl.rewards.math_answer import Question, decide, grade
from agentrl.rewards.math_compare import Policy

REQUEST = struct.Struct("!cI")
"""`F` and nothing, a socket beside it; or `E` and a process id."""
REPLY = struct.Struct("!i")
"""The process id of a fork; how the process ended, as `os.waitstatus_to_exitcode` has it."""
FORK, END = b"F", b"E"
READY = REPLY.pack(0)
GOLD_READ = b"gold"
"""A worker's word that the gold is good; what happens from here on is the answer's doing."""


def preload() -> None:
    """Import and try out what gradings need, so that workers have it from the start."""
    for gold, answer in (("\\frac{1}{\\sqrt{2}}+x^2", "\\frac{\\sqrt{2}}{2}+x^{2}"), ("y=2x+1", "2x-y+1=0"), ("\\sum_{k=1}^{3} k", "\\pi")):
        grade(gold=gold, answer=answer)


def serve(connection: Connection, *, cpu_s: float, memory_mib: int) -> None:
    """Answer questions until the other end closes."""
    _limit_memory(memory_mib)
    while True:
        try:
            asked = json.loads(connection.recv_bytes())
        except EOFError:
            return
        question = Question(gold=asked["gold"], answer=asked["answer"], said="", policy=Policy(**asked["policy"]))
        started = time.process_time()
        _allow(cpu_s)

        def gold_is_read(started: float = started) -> None:
            connection.send_bytes(GOLD_READ)
            _allow(cpu_s + time.process_time() - started)  # the comparison evaluates the gold once more

        result = decide(question, gold_is_read=gold_is_read)
        _allow(0)
        connection.send_bytes(json.dumps([result.verdict, result.reason]).encode())


def _allow(cpu_s: float) -> None:
    """Let this process compute for so long and then be ended by SIGPROF; 0 takes the limit away."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _limit_memory(mib: int) -> None:
    """Allow so much beyond what is mapped already."""
    mapped = 0
    with contextlib.suppress(OSError, ValueError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (mapped + mib * 2**20, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Parent:
    """Forks workers and ends them, as its socket says."""

    def __init__(self, control: socket.socket, *, cpu_s: float, memory_mib: int) -> None:
        self._control = control
        self._cpu_s = cpu_s
        self._memory_mib = memory_mib
        self._workers: set[int] = set()

    def run(self) -> None:
        """Until the other end closes; then every worker is ended."""
        try:
            while True:
                request, descriptors, _, _ = socket.recv_fds(self._control, REQUEST.size, 1)
                if len(request) < REQUEST.size:
                    return
                kind, pid = REQUEST.unpack(request)
                self._control.sendall(REPLY.pack(self._fork(descriptors[0]) if kind == FORK else self._end(pid)))
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            for pid in list(self._workers):
                self._end(pid)

    def _fork(self, descriptor: int) -> int:
        pid = os.fork()
        if pid:
            os.close(descriptor)
            self._workers.add(pid)
            return pid
        try:
            self._control.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                serve(Connection(descriptor), cpu_s=self._cpu_s, memory_mib=self._memory_mib)
        finally:
            os._exit(0)

    def _end(self, pid: int) -> int:
        if pid not in self._workers:
            return 0
        self._workers.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # one that has ended keeps its number until it is reaped
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    """Entry point of the parent process: the socket, CPU seconds and MiB of memory."""
    descriptor, cpu_s, memory_mib = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    if memory_mib < 1:
        sys.exit(f"a worker needs memory, got {memory_mib} MiB")
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    control = socket.socket(fileno=descriptor)
    preload()
    gc.collect()
    gc.freeze()  # what is shared with the workers stays shared
    control.sendall(READY)
    Parent(control, cpu_s=cpu_s, memory_mib=memory_mib).run()
    os._exit(0)


if __name__ == "__main__":
    main()
