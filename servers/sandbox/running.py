"""A program that was started in a sandbox, by the process that started it: its streams, its tree, its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentrl.servers.sandbox import tree
from agentrl.servers.sandbox.limits import SandboxUnavailable, Status

if TYPE_CHECKING:
    from agentrl.servers.sandbox.cgroups import Cage
    from agentrl.servers.sandbox.limits import Limits

OWN_TASKS = 3
"""Of a sandbox itself, within the tree."""
MOST_REWRITES = 8
"""A deleted file that is held open fills the disk and is in no folder: what all files got is bounded too."""
MOST_ADDRESSES_BYTES = 64 << 30
"""Of one process: far more than interpreters reserve, and too few for page tables that fill the machine."""
IN_MEMORY = ("/tmp", "/dev/shm")
MOST_ENTRIES = 20_000
"""Of files in memory: an empty one holds memory of the kernel that counts as nobody's."""
END_TIMEOUT_S = 60.0
Fault = tuple[Status, str]
"""A limit that was broken, and the sentence about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a program ended, as a shell counts: 128 and a signal's number for one that was killed."""

    code: int
    cpu_s: float
    """Of the whole tree, where its members were waited for."""
    killed_for_memory: bool


@dataclass(kw_only=True)
class Running:
    """A program that runs. `kill` and `reap` end it; the streams are descriptors of this process."""

    process: subprocess.Popen[bytes]
    root: int
    """First process of its tree, seen from here."""
    root_fd: int
    """Descriptor of that very process, which no other can take the place of."""
    ended_fd: int
    """Readable once `process` has ended."""
    stdin: int
    stdout: int
    stderr: int
    limits: Limits
    cage: Cage | None
    confined: bool
    """Whether nothing can leave the tree."""
    writes: bool = True
    """Whether it may write files."""
    kills_before: int = 0
    """Processes that were killed for memory before what is watched now."""
    end: End | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Somebody else may kill what is being waited for."""

    def broken_limit(self, since_cpu_s: float = 0.0) -> Fault | None:
        """Which limit the whole tree breaks at this moment, as a status and a sentence.

        Args:
            since_cpu_s: CPU time that does not count.
        """
        limits, used = self.limits, tree.use(self.root)
        if self.memory_kills() > self.kills_before:
            return "memory", f"it used more than {limits.memory_mib} MiB of memory"
        if used.cpu_s - since_cpu_s > limits.cpu_s:
            return "cpu", f"it used more than {limits.cpu_s:g} s of CPU time"
        if used.tasks > limits.processes + OWN_TASKS:
            return "memory", f"it ran more than {limits.processes} processes and threads"
        if tree.written_bytes(self.root) > MOST_REWRITES * limits.folder_mib << 20:
            return "output", f"it wrote {MOST_REWRITES} times the {limits.folder_mib} MiB that its folder may hold"
        held_bytes, entries = tree.held_in_memory(self.root, IN_MEMORY) if self.confined else (0, 0)
        if entries > MOST_ENTRIES:
            return "memory", f"it kept more than {MOST_ENTRIES} files in {' and '.join(IN_MEMORY)}"
        left = (limits.memory_mib << 20) - held_bytes
        if self.cage is None and used.memory_bytes > left and (tree.fair_memory_bytes(self.root) or used.memory_bytes) > left:
            return "memory", f"it used more than {limits.memory_mib} MiB of memory"
        return None

    def memory_kills(self) -> int:
        """Processes that the kernel has killed for memory."""
        return 0 if self.cage is None else self.cage.memory_kills()

    def kill(self) -> None:
        """Kill the whole tree, as far as it can be found; `reap` waits for it."""
        with self.lock:
            if self.end is not None:
                return
            if not self.confined:
                tree.signal_some(self.root, tree.members(self.root), signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.root_fd, signal.SIGKILL)

    def reap(self) -> End:
        """Wait for the end, which must be near, and free everything; may be called again. Raises `SandboxUnavailable`."""
        if self.end is None:
            if not readable(self.ended_fd, END_TIMEOUT_S):
                raise SandboxUnavailable(f"a sandbox that was killed has not ended within {END_TIMEOUT_S:g} s; the machine hangs")
            self.kill()  # what is left of a tree that is not confined
            with self.lock:
                _, status, used = os.wait4(self.process.pid, 0)
                code = self.process.returncode = os.waitstatus_to_exitcode(status)
                self.end = End(
                    code=code if code >= 0 else 128 - code,
                    cpu_s=used.ru_utime + used.ru_stime,
                    killed_for_memory=self.memory_kills() > self.kills_before,
                )
                self._free()
        return self.end

    def _free(self) -> None:
        if self.cage is not None:
            self.cage.close()
        for fd in (self.root_fd, self.ended_fd, self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)

    def close_stdin(self) -> None:
        """Let the program read the end of its input."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


def readable(fd: int, timeout_s: float) -> bool:
    """Whether a descriptor, of any number, can be read in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def rlimits(limits: Limits, cpu_s: float | None, writes: bool) -> list[str]:
    """Words of util-linux's `prlimit` for what a single process may use; see `Bubblewrap.start`."""
    cpu = max(1, round(limits.cpu_s if cpu_s is None else cpu_s))
    return [
        f"--cpu={cpu}:{cpu + 1}",
        f"--fsize={limits.file_mib << 20 if writes else 0}",
        f"--data={limits.memory_mib << 20}",
        f"--nofile={limits.open_files}",
        f"--as={MOST_ADDRESSES_BYTES}",
        "--core=1",  # 0 still calls a handler of crashes outside, as root; 1 is the kernel's word for nothing at all
    ]


@dataclass
class Pipes:
    """Both ends of a program's three streams."""

    stdin: tuple[int, int]
    stdout: tuple[int, int]
    stderr: tuple[int, int]

    @classmethod
    def make(cls, user: int | None) -> Pipes:
        """New ones; a program opens its own by name too (/dev/stderr), so they belong to its user."""
        made = cls(os.pipe(), os.pipe(), os.pipe())
        for pair in (made.stdin, made.stdout, made.stderr):
            if user is not None:
                os.fchown(pair[0], user, user)
        for fd in made.ours:
            os.set_blocking(fd, False)
        return made

    @property
    def ours(self) -> tuple[int, int, int]:
        """Ends that stay here."""
        return self.stdin[1], self.stdout[0], self.stderr[0]

    @property
    def theirs(self) -> tuple[int, int, int]:
        """Ends that the program gets."""
        return self.stdin[0], self.stdout[1], self.stderr[1]

    def close(self, fds: tuple[int, ...]) -> None:
        """Close some of them here."""
        for fd in fds:
            os.close(fd)
