"""The preloaded process that workers are forked from (`agentrl.rewards.grader_process`), seen by the one that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import agentrl
from agentrl.errors import EnvironmentFailure
from agentrl.rewards.grader_process import END, FORK, REPLY, REQUEST

START_S = 60.0
"""Longest time to import computer algebra."""
CONTROL_S = 5.0
"""Longest time to fork or to end a worker."""


class GraderUnavailable(EnvironmentFailure):
    """The grader's processes do not start."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A forked process that answers questions over its connection."""

    parent: Parent
    pid: int
    connection: Connection


class Parent:
    """Starts the process, which takes most of a second. Methods raise `OSError` once it is gone.

    Raises `GraderUnavailable` where it does not start.
    """

    def __init__(self, *, cpu_s: float, memory_mib: int) -> None:
        self._lock = threading.Lock()
        self.closed = False
        """Whether it was ended."""
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "agentrl.rewards.grader_process", str(theirs.fileno()), str(cpu_s), str(memory_mib)]
        path = os.pathsep.join(filter(None, (str(Path(agentrl.__file__).parent.parent), os.environ.get("PYTHONPATH"))))
        with theirs:
            # in a session of its own: Ctrl-C is for those who asked, and they end this
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            self._control.settimeout(START_S)
            self._reply()
            self._control.settimeout(CONTROL_S)
        except OSError as error:
            self.close()
            raise GraderUnavailable(
                f"the math grader's process did not start ({error}); see what `python -m agentrl.rewards.grader_process` prints"
            ) from error

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._process.pid

    def fork(self) -> Worker:
        """A new worker."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                socket.send_fds(self._control, [REQUEST.pack(FORK, 0)], [theirs.fileno()])
                pid = self._reply()
        except BaseException:
            ours.close()
            raise
        return Worker(self, pid, Connection(ours.detach()))

    def end(self, pid: int) -> int:
        """Kill and reap a worker; its exit status, 0 where it is unknown."""
        try:
            with self._lock:
                self._control.sendall(REQUEST.pack(END, pid))
                return self._reply()
        except OSError:
            self.close()
            return 0

    def _reply(self) -> int:
        reply = b""
        while len(reply) < REPLY.size:
            part = self._control.recv(REPLY.size - len(reply))
            if not part:
                raise ConnectionResetError("it ended")
            reply += part
        (number,) = struct.unpack(REPLY.format, reply)
        return int(number)

    def close(self) -> None:
        """End the process and its workers."""
        self.closed = True
        self._control.close()  # which it sees, and ends its workers
        try:
            self._process.wait(CONTROL_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its workers are in its group
            self._process.wait()
