"""A process and everything below it, read from /proc: who they are, what they use, and how to halt them all.

In a process namespace nothing leaves the tree: whoever loses its parent is given to the namespace's first process, the root here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TICKS = os.sysconf("SC_CLK_TCK")
HALT_TIMEOUT_S = 2.0
HALT_LOOK_S = 0.0005
"""The kernel tells only a process's own parent that it has stopped; anybody else has to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a tree of processes uses."""

    tasks: int
    """Processes and threads."""
    cpu_s: float
    """Of all that run and of all that were waited for."""
    memory_bytes: int
    """Resident, swapped out, or of page tables; what several share is counted in each of them."""


def members(root: int) -> list[int]:
    """Process ids of a tree, the root first."""
    found = [root]
    for pid in found:  # grows meanwhile
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                found += [int(child) for child in _text(f"/proc/{pid}/task/{task}/children").split()]
    return found


def children(pid: int) -> list[int]:
    """Processes that the main thread of a process started."""
    return [int(child) for child in _text(f"/proc/{pid}/task/{pid}/children").split()]


def use(root: int) -> Use:
    """What a tree uses at this moment."""
    tasks = ticks = kib = 0
    for pid in members(root):
        if fields := _stat(pid):
            ticks += sum(map(int, fields[11:15]))
            tasks += int(fields[17])
            kib += _kib(f"/proc/{pid}/status", ("VmRSS:", "VmSwap:", "VmPTE:"))
    return Use(tasks=tasks, cpu_s=ticks / TICKS, memory_bytes=kib * 1024)


def fair_memory_bytes(root: int) -> int | None:
    """Memory of a tree with shared pages counted once; None where that cannot be read. Slower than `use`."""
    shared = own = 0
    for pid in members(root):
        shared += _kib(f"/proc/{pid}/smaps_rollup", ("Pss:", "SwapPss:"))
        own += _kib(f"/proc/{pid}/status", ("VmPTE:",))
    return (shared + own) * 1024 if shared else None


def signal_some(root: int, pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to members of a tree, and to nobody who has got the number of one that ended meanwhile."""
    with contextlib.ExitStack() as stack:
        held: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                held[pid] = os.pidfd_open(pid)
                stack.callback(os.close, held[pid])
        for pid in held.keys() & set(members(root)):
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(held[pid], number)


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process has chosen to ignore a signal."""
    masks = [line.split()[1] for line in _text(f"/proc/{pid}/status").splitlines() if line.startswith("SigIgn:")]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def written_bytes(root: int) -> int:
    """What a tree has written to files, less what it has taken back before it reached a disk."""
    total = 0
    for pid in members(root):
        counts = dict(line.split(": ") for line in _text(f"/proc/{pid}/io").splitlines())
        total += int(counts.get("write_bytes", 0)) - int(counts.get("cancelled_write_bytes", 0))
    return total


def halt(root: int) -> bool:
    """Stop every process of a tree; False where new ones kept appearing."""
    told: set[int] = set()
    deadline = time.monotonic() + HALT_TIMEOUT_S
    while moving := [pid for pid in members(root) if (fields := _stat(pid)) and fields[0] not in "TtZX"]:
        if time.monotonic() > deadline:
            return False
        if fresh := set(moving) - told:
            signal_some(root, fresh, signal.SIGSTOP)
            told |= fresh
        else:
            time.sleep(HALT_LOOK_S)
    return True


def resume(root: int) -> None:
    """Let a tree that was halted go on."""
    signal_some(root, members(root), signal.SIGCONT)


def held_in_memory(root: int, places: Iterable[str]) -> tuple[int, int]:
    """(bytes, entries) that no process is charged for, zeros where they cannot be seen from here.

    Args:
        root: of the tree.
        places: of file systems in memory, as the tree sees them; what waits in its connections counts too.
    """
    size = entries = 0
    for place in places:
        with contextlib.suppress(OSError):
            found = os.statvfs(f"/proc/{root}/root{place}")
            size += (found.f_blocks - found.f_bfree) * found.f_frsize
            entries += found.f_files - found.f_ffree
    for name in ("tcp", "tcp6"):
        for line in _text(f"/proc/{root}/net/{name}").splitlines()[1:]:
            size += sum(int(queue, 16) for queue in line.split()[4].split(":"))
    return size, entries


def _kib(path: str, names: tuple[str, ...]) -> int:
    """Sum of some lines of a file of the kernel's that counts in KiB."""
    return sum(int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(names))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (the third of them); empty where the process is gone."""
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()  # a program may put brackets and spaces into its name


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
