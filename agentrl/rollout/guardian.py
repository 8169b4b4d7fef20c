"""The guardian of an environment worker: a small process that is the worker's parent, and ends whatever comes of it.

Run as a script, without agentrl or anything else but the standard library: `guardian.py FD COMMAND...` starts the command, with the
guardian's process id as last argument, and waits until it ends or until the guardian's own input closes, however that came about. Then
it kills every descendant and ends as the command did.

On Linux nothing escapes: a descendant that lost its parent becomes a child of the guardian (PR_SET_CHILD_SUBREAPER), whatever session,
group or environment it gave itself, so once the guardian has no child there is nothing left. Elsewhere the process group is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

MARK = "AGENTRL_ENV_WORKER"
"""Environment variable with a value of its own for each worker: where its guardian was killed, descendants are found by it."""
KILL_S = 5.0
"""Longest time to end descendants; only one that belongs to another user (sudo) or hangs in the kernel takes longer."""
SIGNALLED = 128
"""Added to the number of the signal that ended the command, as shells do: a guardian that was itself killed can be told from it."""
SCAN_S = 1.0
"""Longest time to look for marked processes while one is being started that does not show its environment yet."""

_PR_SET_CHILD_SUBREAPER = 36
_INPUT = 0
_AGAIN_S = 0.05
_STATE, _PARENT, _ENVIRONMENT_END = 0, 1, 48
"""Fields of /proc/PID/stat behind the name."""


def guarded(descriptor: int) -> list[str]:
    """What goes before a command that is to run below a guardian, which is the one process that gets a pipe as its input.

    Args:
        descriptor: what the command inherits and the guardian closes, so that the other end sees when the command closes it.
    """
    return [sys.executable, "-E", "-S", __file__, str(descriptor)]


def kill_marked(mark: str) -> None:
    """Kill every process that inherited the mark: what is left of a worker whose guardian was killed. Needs /proc.

    Looks until two scans in a row find nothing, because a process may start another behind the back of one.
    """
    deadline = time.monotonic() + SCAN_S
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        quiet = 0 if _scan(f"{MARK}={mark}".encode()) else quiet + 1


def _scan(sought: bytes) -> bool:
    """Kill what carries the text in its environment; whether there was one, or one that cannot be told yet."""
    found = False
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to someone else
            environment = (folder / "environ").read_bytes()
            if sought in environment.split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
                found = True
            elif not environment and folder.stat().st_uid == os.getuid():
                fields = _stat(folder)
                # in the middle of execve: the old environment is gone and the new one not yet there
                found |= fields[_ENVIRONMENT_END] == "0" and fields[_STATE] not in "ZX"
    return found


def _stat(folder: Path) -> list[str]:
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


class _Watch:
    """The command's process and everything below it."""

    def __init__(self, command: list[str]) -> None:
        self._status: int | None = None
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._worker = _start([*command, str(os.getpid())])
        self._signals, wakes = os.pipe()
        for descriptor in (self._signals, wakes):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def wait(self) -> None:
        """Until the command ends or the guardian's input closes. Orphans that end are reaped meanwhile."""
        self._reap()  # it may have ended before its signal was waited for
        while self._status is None and _INPUT not in self._ready(_INPUT, self._signals):
            self._reap()

    def end(self) -> int:
        """Kill whatever is left; returns the exit status of the command, above `SIGNALLED` where a signal ended it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._worker, signal.SIGKILL)
        deadline = time.monotonic() + KILL_S
        while self._reap() and time.monotonic() < deadline:
            unreaped = [self._worker] if self._status is None else []
            for pid in [*unreaped, *_descendants(os.getpid())]:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._ready(self._signals, timeout_s=_AGAIN_S)
        code = -signal.SIGKILL if self._status is None else os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else SIGNALLED - code

    def _ready(self, *descriptors: int, timeout_s: float | None = None) -> list[int]:
        ready = select.select(descriptors, [], [], timeout_s)[0]
        if self._signals in ready:
            os.read(self._signals, 4096)
        return ready

    def _reap(self) -> bool:
        """Take note of the children that have ended; whether there are others."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._worker:
                    self._status = ended[1]
        except ChildProcessError:
            return False
        return True


def _start(command: list[str]) -> int:
    """Start the command in a session and process group of its own, its input empty."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), _INPUT)
        os.execv(command[0], command)
    finally:
        os._exit(127)


def _descendants(root: int) -> set[int]:
    """Living descendants of a process; none where there is no /proc."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int(_stat(folder)[_PARENT])
    found: set[int] = set()
    level = {root}
    while level := {pid for pid, parent in parents.items() if parent in level} - found:
        found |= level
    return found


def main() -> None:
    """Entry point of the process."""
    watch = _Watch(sys.argv[2:])
    os.close(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # after the start: a command inherits what is ignored
        signal.signal(number, signal.SIG_IGN)
    watch.wait()
    os._exit(watch.end())


if __name__ == "__main__":
    main()
