"""What a worker holds of the machine, read from /proc: processes, threads, descriptors, sockets, files and memory."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE_S = 2.0
"""Longest wait for what an episode held to be gone once it is over."""
AGAIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Counts, and MiB of memory over all of its processes."""

    processes: int
    threads: int
    descriptors: int
    sockets: int
    files: int
    """Files and folders in its temporary folder."""
    memory_mib: float

    def beyond(self, other: Footprint) -> dict[str, int]:
        """What there is more of here; memory aside, which allocators keep."""
        ours, theirs = asdict(self), asdict(other)
        return {name: count - theirs[name] for name, count in ours.items() if name != "memory_mib" and count > theirs[name]}


def measurable() -> bool:
    """Whether this system shows what a process holds."""
    return sys.platform == "linux" and Path("/proc/self/fd").is_dir()


def footprint(guardian: int, temporary: Path) -> Footprint:
    """What the worker below a guardian holds now.

    Args:
        guardian: process id of the worker's parent.
        temporary: the worker's TMPDIR.
    """
    below = _descendants(guardian)
    workers = [pid for pid, parent in below.items() if parent == guardian]
    links = [_link(path) for pid in workers for path in _listed(f"/proc/{pid}/fd")]
    return Footprint(
        processes=len(below),
        threads=sum(len(_listed(f"/proc/{pid}/task")) for pid in workers),
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        files=sum(len(folders) + len(names) for _, folders, names in os.walk(temporary)),
        memory_mib=sum(map(_memory_mib, below)),
    )


async def settled(measure: Callable[[], Footprint], target: Footprint | None = None) -> Footprint:
    """The footprint once it is no larger than `target`, or else after a while; without a target, once it stands still."""
    # an episode's end is not told by what it held: killed processes and closed threads go when the kernel gets round to them
    deadline = time.monotonic() + SETTLE_S
    before, now = None, measure()
    while time.monotonic() < deadline:
        if target is not None and not now.beyond(target):
            break
        if target is None and before is not None and not now.beyond(before) and not before.beyond(now):
            break
        await trio.sleep(AGAIN_S)
        before, now = now, measure()
    return now


def _descendants(root: int) -> dict[int, int]:
    """Living descendants of a process and the parent of each."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            if len(fields) > 1 and fields[0] != "Z":
                parents[int(name)] = int(fields[1])
    found: dict[int, int] = {}
    level = {root}
    while level:
        below = {pid: parent for pid, parent in parents.items() if parent in level and pid not in found}
        found |= below
        level = set(below)
    return found


def _memory_mib(pid: int) -> float:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if len(fields) > 1 else 0.0


def _listed(path: str) -> list[str]:
    try:
        return [f"{path}/{name}" for name in os.listdir(path)]
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
