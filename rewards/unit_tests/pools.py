"""The warm workers that graders share: one pool a process for each set of programs, opened when it is first needed."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from agentrl.servers.sandbox.limits import Limits, SandboxUnavailable
from agentrl.servers.sandbox.warm import PRELOAD, WarmPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

_HERE = "agentrl.rewards.unit_tests"
CANDIDATE, TESTER, SCRIPT = f"{_HERE}.candidate:main", f"{_HERE}.tester:main", f"{_HERE}.script:main"
PROJECT_TESTER = f"{_HERE}.project_tester:main"

LIMITS = Limits(cpu_s=5, wall_s=15, memory_mib=1024, processes=16, file_mib=16, output_kib=1024, open_files=128)
"""Of the candidate and of the tests, each."""
TRIES = 3
"""Of a grading that the sandbox, not the candidate, has spoiled."""
BACK_OFF_S = 0.2
"""Before the second try; twice as long before each further one."""

_pools: dict[tuple[str, ...], WarmPool] = {}
_lock = threading.Lock()


def pool(programs: Sequence[str] = (CANDIDATE, TESTER, SCRIPT), preload: Sequence[str] = (), packages: Sequence[str] = ()) -> WarmPool:
    """The pool of this process with these programs; a new one where the old has died. Raises `SandboxUnavailable`."""
    key = (*programs, *preload, *packages)
    with _lock:
        found = _pools.get(key)
        if found is None or not found.alive:
            if found is not None:
                found.close()
            found = _pools[key] = WarmPool(programs, preload=(*PRELOAD, *preload), packages=packages)
        return found


def close_pools() -> None:
    """End all of them; a later call of `pool` opens a new one."""
    with _lock:
        while _pools:
            _pools.popitem()[1].close()


def persistent(attempt: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """What an attempt returns, tried anew where the sandbox failed. Raises the last `SandboxUnavailable`.

    Args:
        attempt: called up to `TRIES` times.
        pause: waits so many seconds.
    """
    for number in range(TRIES - 1):
        with contextlib.suppress(SandboxUnavailable):
            return attempt()
        pause(BACK_OFF_S * 2**number)
    return attempt()


def _forget() -> None:
    """The zygotes of a process are not those of its forks."""
    global _lock
    for one in _pools.values():
        one.abandon()
    _pools.clear()
    _lock = threading.Lock()


atexit.register(close_pools)
os.register_at_fork(after_in_child=_forget)
