"""A thousand tasks that wake at once must not hold the event loop for the sum of what each of them does."""

from __future__ import annotations

import trio

_lock: trio.lowlevel.RunVar[trio.Lock] = trio.lowlevel.RunVar("agentrl-turnstile")


async def one_by_one() -> None:
    """Wait for a turn of the event loop's own: tasks that wait here go on one a turn, with timers and sockets served in between.

    To be awaited before a piece of work of some hundred microseconds that many tasks may do at the same time.
    """
    try:
        lock = _lock.get()
    except LookupError:
        lock = trio.Lock()
        _lock.set(lock)
    async with lock:  # the next in line is woken by the release, and runs in the turn after this one
        pass
