"""The outside of a warm program: its clock, the watch over its memory and processor time, and the pipes to and from it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agentrl.servers.sandbox import tree
from agentrl.servers.sandbox.limits import Limits, Outcome, SandboxUnavailable
from agentrl.servers.sandbox.warm import Ended, WarmPool, WarmProgram

if TYPE_CHECKING:
    from collections.abc import Sequence

Stop = Literal["", "timeout", "cpu", "memory", "output"]

LEAST_CPU_S = 0.5
"""The kernel ends no program for its processor time that has used less, unless it has lowered that limit of its own: one of zero ends it at
once. The kernel counts in ticks, so a program may seem to have used less than its limit."""
TICK_S = 0.05
"""Between two looks at what a program uses; one that ends sooner is never looked at."""
STARVED_SHARE = 0.5
"""Of the wall clock that a program waited for a processor, from which on the machine is at fault, if the program used little itself."""
MOST_STARVED_TASKS = 2
"""Processes and threads of a program, from which on it could starve itself; those that have ended are not in what it has used."""
_CHUNK = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What came of watching."""

    stop: Stop
    """Why everything was killed; empty where the program ended by itself."""
    ended: Ended
    """How the watched program ended."""
    outputs: tuple[bytes, ...]
    """What was read, one for each descriptor."""
    seconds: float
    beside: tuple[Ended, ...] = ()
    """How those beside it ended that did not live until it had."""


@dataclass
class _Reading:
    fd: int
    most: int
    data: bytearray = field(default_factory=bytearray)


def watch(
    program: WarmProgram,
    *,
    limits: Limits,
    beside: Sequence[WarmProgram] = (),
    read: Sequence[tuple[int, int]] = (),
    write: tuple[int, bytes] | None = None,
) -> Watched:
    """Wait until a program and its pipes have ended, or a limit is broken; it and those beside it are dead and reaped then.

    Args:
        program: whose end is waited for.
        limits: of each program, and the clock of all.
        beside: programs that work for it.
        read: descriptors with the most bytes that are accepted from each; closed here.
        write: a descriptor and what is written to it; closed here.
    Raises: `SandboxUnavailable` where the sandbox failed, or the machine was too busy for the program to run.
    """
    loop = _Watch((program, *beside), limits, [_Reading(fd, most) for fd, most in read], write)
    try:
        stop = loop.run()
        for one in (program, *beside):
            one.kill()
        ended = program.finish()
        for one in beside:
            one.finish()
        loop.refuse_murder()
        loop.drain()
    finally:
        loop.close()
        for one in (program, *beside):
            one.close()
    outputs = tuple(bytes(one.data) for one in loop.reading)
    early = tuple(one.finish() for one in loop.died if one is not program)
    return Watched(stop=stop, ended=ended, outputs=outputs, seconds=time.monotonic() - loop.started, beside=early)


class _Watch:
    """The loop of `watch`."""

    def __init__(self, programs: tuple[WarmProgram, ...], limits: Limits, reading: list[_Reading], write: tuple[int, bytes] | None) -> None:
        self.started = time.monotonic()
        self.reading = reading
        self.died: list[WarmProgram] = []
        self._most_tasks = 0
        self._programs, self._limits = programs, limits
        self._left = memoryview(write[1]) if write else memoryview(b"")
        self._write_fd = write[0] if write else -1
        self._selector = selectors.DefaultSelector()
        for one in programs:
            self._selector.register(one, selectors.EVENT_READ, one)
        for pipe in reading:
            os.set_blocking(pipe.fd, False)
            self._selector.register(pipe.fd, selectors.EVENT_READ, pipe)
        if write:
            os.set_blocking(self._write_fd, False)
            self._selector.register(self._write_fd, selectors.EVENT_WRITE)

    def run(self) -> Stop:
        """Until the first program has ended; returns the limit that was broken, if any."""
        deadline = self.started + self._limits.wall_s
        look_at = self.started + TICK_S
        while True:
            now = time.monotonic()
            if now >= deadline:
                self._refuse_starvation()
                return "timeout"
            if now >= look_at:
                look_at = now + TICK_S
                if (broken := self._look()) != "":
                    return broken
            for key, _ in self._selector.select(min(deadline, look_at) - now):
                if isinstance(key.data, WarmProgram):
                    self._selector.unregister(key.data)
                    self.died.append(key.data)
                    if key.data is self._programs[0]:
                        return ""
                elif isinstance(key.data, _Reading):
                    if not self._read(key.data):
                        return "output"
                else:
                    self._send()

    def refuse_murder(self) -> None:
        """Raise where the kernel, short of memory, or somebody else has killed a program: nothing inside can, not even itself."""
        for one in self.died:
            ended = one.finish()
            if ended.status == "signalled" and ended.code == signal.SIGKILL and not spent(ended):
                raise SandboxUnavailable("a program in a sandbox was killed from outside of it; has the machine run out of memory?")

    def drain(self) -> None:
        """Read what the dead have left in their pipes; more than is accepted stays where it is."""
        for pipe in self.reading:
            while pipe.fd in self._selector.get_map() and len(pipe.data) <= pipe.most and self._read(pipe):
                pass

    def close(self) -> None:
        """Close the pipes."""
        self._selector.close()
        for fd in (*(pipe.fd for pipe in self.reading), self._write_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _read(self, pipe: _Reading) -> bool:
        """Read once; False where it is too much."""
        try:
            data = os.read(pipe.fd, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            self._selector.unregister(pipe.fd)
            return True
        pipe.data += data[: pipe.most + 1 - len(pipe.data)]
        return len(pipe.data) <= pipe.most

    def _send(self) -> None:
        try:
            self._left = self._left[os.write(self._write_fd, self._left[:_CHUNK]) :] if self._left else self._left
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not read its input
            self._left = memoryview(b"")
        if not self._left:
            self._selector.unregister(self._write_fd)
            os.close(self._write_fd)
            self._write_fd = -1

    def _look(self) -> Stop:
        most = self._limits.memory_mib * 2**20
        for one in self._programs:
            if (pid := one.pid) is None:
                continue
            now = tree.use(pid)
            self._most_tasks = max(self._most_tasks, now.tasks)
            if now.cpu_s > self._limits.cpu_s:
                return "cpu"
            if now.memory_bytes > most and (tree.fair_memory_bytes(pid) or most + 1) > most:
                return "memory"
        return ""

    def _refuse_starvation(self) -> None:
        """Raise where a program had hardly a chance to run, and was not itself what kept the machine busy: that takes many tasks."""
        if self._most_tasks > MOST_STARVED_TASKS:
            return
        for one in self._programs:
            if (pid := one.pid) is None:
                continue
            waited, used = _waited_s(pid), sum(tree.use(other).cpu_s for other in (each.pid for each in self._programs) if other)
            if waited >= STARVED_SHARE * self._limits.wall_s and used < self._limits.cpu_s / 4:
                raise SandboxUnavailable(
                    f"the machine was too busy: within {self._limits.wall_s:g} s a program got {used:.1f} s of a processor "
                    f"and waited {waited:.1f} s for one"
                )


def spent(ended: Ended) -> bool:
    """Whether the kernel ended a program for the processor time that it had used, or that it had left itself."""
    return ended.status == "signalled" and ended.code == signal.SIGKILL and (ended.lowered or ended.cpu_s >= LEAST_CPU_S)


def _waited_s(pid: int) -> float:
    """How long a process was ready to run and had no processor."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def run_program(
    pool: WarmPool, program: str, job: bytes, *, stdin: bytes = b"", limits: Limits | None = None, allow_output_kib: int | None = None
) -> Outcome:
    """Run one program of a pool to its end, its descriptors being: the job (a file), standard input, output and error.

    Args:
        pool: that has the program.
        program: its name there.
        job: what it is told; of any size.
        stdin: its input.
        limits: of it and all that it starts.
        allow_output_kib: of output and error each, where fewer than the limits say.
    Raises: `SandboxUnavailable`.
    """
    limits = limits or Limits()
    told = job_file(job)
    (in_read, in_write), (out_read, out_write), (error_read, error_write) = os.pipe(), os.pipe(), os.pipe()
    most = (allow_output_kib or limits.output_kib) * 1024
    try:
        started = pool.start(program, [told, in_read, out_write, error_write], limits=limits)
    except BaseException:
        for fd in (in_write, out_read, error_read):
            os.close(fd)
        raise
    finally:
        for fd in (told, in_read, out_write, error_write):
            os.close(fd)
    seen = watch(started, limits=limits, read=[(out_read, most), (error_read, most)], write=(in_write, stdin))
    return as_outcome(seen, limits, most)


def as_outcome(seen: Watched, limits: Limits, most_output: int) -> Outcome:
    """What became of a program, in the terms that all sandboxes share."""
    stdout, stderr = (data[:most_output] for data in seen.outputs)
    status, code = (seen.stop, None) if seen.stop else (seen.ended.status, seen.ended.code)
    if not seen.stop and spent(seen.ended):
        status, code = "cpu", None  # the kernel was quicker than the watch
    elif not seen.stop and any(len(data) > most_output for data in seen.outputs):
        status, code = "output", None
    reasons = {
        "timeout": f"killed after {limits.wall_s:g} s",
        "cpu": f"killed after {limits.cpu_s:g} s of processor time",
        "memory": f"killed for using more than {limits.memory_mib} MiB",
        "output": f"killed for writing more than {most_output // 1024} KiB",
        "signalled": f"ended by signal {seen.ended.code}",
        "exited": "",
    }
    return Outcome(status=status, code=code, stdout=stdout, stderr=stderr, seconds=seen.seconds, reason=reasons[status])


def job_file(data: bytes) -> int:
    """A descriptor of a file in memory that holds what a program is told, sealed, to be read from its start."""
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd
