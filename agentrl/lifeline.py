"""A child process that never outlives its parent, even one that was ended by `kill -9`.

Two means, because neither is enough: a pipe whose write end only the parent holds works on every POSIX system, and Linux can also be
asked for a signal, which reaches a child that hangs in native code. Imports nothing heavy, so that a child can call it first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import NoReturn

ORPHANED_STATUS = 3
"""Exit status of a process that ended because its parent had."""

_PR_SET_PDEATHSIG = 1


def watch(fd: int) -> threading.Thread:
    """End this process as soon as the other end of a pipe closes.

    Args:
        fd: read end of a pipe that was inherited; nothing is ever written to it.
    Returns: the daemon thread that waits. It ends the process with `ORPHANED_STATUS` and without running any clean-up, because that
        may hang once the peers are gone.
    """
    thread = threading.Thread(target=_wait_for_end, args=(fd,), name="lifeline", daemon=True)
    thread.start()
    return thread


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere it does nothing.

    The kernel means the starting *thread*, not its process, so a parent starts children from a thread that lasts as long as they do.

    Args:
        parent: process id of the parent, where the child was told it: a parent that died before this call is then noticed too.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(ORPHANED_STATUS)


def _wait_for_end(fd: int) -> NoReturn:
    try:
        while os.read(fd, 1):
            pass
    finally:
        os._exit(ORPHANED_STATUS)
