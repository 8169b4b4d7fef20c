"""A control group for one program and all that it starts: memory and processes counted by the kernel, where this process may make one.

Version 2 where the whole hierarchy is mounted, else version 1's `memory` and `pids`. None is writable for an ordinary user in most
places; the caller then watches the tree itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path("/sys/fs/cgroup")
PREFIX = "agentrl-"
CONTROLLERS = ("memory", "pids")


@dataclass(frozen=True, slots=True)
class Cage:
    """A control group that was made for one program; by controller, the folder that holds it (version 2 has one for both)."""

    folders: Mapping[str, Path]

    def admit(self, pid: int) -> None:
        """Put a process in, and with it all that it will start. Raises `OSError`."""
        for folder in dict.fromkeys(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def memory_kills(self) -> int:
        """How many processes the kernel has killed for the memory of the group."""
        folder = self.folders["memory"]
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (folder / name).read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    def close(self) -> None:
        """Remove the group, whose processes are gone."""
        for folder in dict.fromkeys(self.folders.values()):
            with contextlib.suppress(OSError):
                folder.rmdir()


def make_cage(*, memory_bytes: int, tasks: int) -> Cage | None:
    """A group with these limits; None where this process may not make one."""
    parents = writable_parents()
    if not parents:
        return None
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    cage = Cage({controller: parent / name for controller, parent in parents.items()})
    try:
        for folder in dict.fromkeys(cage.folders.values()):
            folder.mkdir()
        _limit(cage.folders["memory"], ("memory.max", "memory.limit_in_bytes"), memory_bytes)
        _limit(cage.folders["memory"], ("memory.swap.max",), 0, needed=False)
        _limit(cage.folders["memory"], ("memory.memsw.limit_in_bytes",), memory_bytes, needed=False)
        _limit(cage.folders["memory"], ("memory.kmem.tcp.limit_in_bytes",), memory_bytes, needed=False)
        _limit(cage.folders["pids"], ("pids.max",), tasks)
    except OSError:
        cage.close()
        return None
    return cage


@functools.cache
def writable_parents() -> Mapping[str, Path]:
    """By controller, a folder below which this process may make groups; empty where there is none. Old groups there are swept."""
    own = dict(_own_groups())
    if (ROOT / "cgroup.controllers").exists():
        unified = ROOT / own.get("", "").lstrip("/")
        with contextlib.suppress(OSError):
            (unified / "cgroup.subtree_control").write_text("+memory +pids")
        options = [dict.fromkeys(CONTROLLERS, folder) for folder in (unified, *unified.parents) if folder.is_relative_to(ROOT)]
    else:
        options = [{name: ROOT / name / own.get(name, "").lstrip("/") for name in CONTROLLERS}, {name: ROOT / name for name in CONTROLLERS}]
    found = next((option for option in options if _may_make(option)), {})
    for folder in dict.fromkeys(found.values()):
        _sweep(folder)
    return found


def _own_groups() -> Iterator[tuple[str, str]]:
    """(controller, path) of this process; version 2 has no name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            yield from ((name, path) for name in names.split(","))


def _may_make(parents: Mapping[str, Path]) -> bool:
    name = f"{PREFIX}{os.getpid()}-probe"
    try:
        for folder in dict.fromkeys(parents.values()):
            (folder / name).mkdir()
        return (
            any((parents["memory"] / name / file).exists() for file in ("memory.max", "memory.limit_in_bytes"))
            and (parents["pids"] / name / "pids.max").exists()
        )
    except OSError:
        return False
    finally:
        for folder in dict.fromkeys(parents.values()):
            with contextlib.suppress(OSError):
                (folder / name).rmdir()


def _sweep(folder: Path) -> None:
    """Remove groups whose maker was killed."""
    for group in folder.glob(f"{PREFIX}*-*"):
        maker = group.name.removeprefix(PREFIX).split("-")[0]
        if maker.isdigit() and not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _limit(folder: Path, names: tuple[str, ...], value: int, *, needed: bool = True) -> None:
    for name in names:
        if (folder / name).exists():
            (folder / name).write_text(str(value))
            return
    if needed:
        raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")
