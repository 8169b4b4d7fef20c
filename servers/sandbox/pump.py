"""Run a started program to its end: feed its input, keep a bounded part of its output, watch clock and limits. Nothing of it is trusted."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING

from agentrl.servers.sandbox.limits import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.servers.sandbox.limits import Status
    from agentrl.servers.sandbox.running import End, Fault, Running

LOOK_S = 0.05
"""Between two looks at what the tree of processes uses."""
CHUNK_BYTES = 1 << 16
LOOKS_A_WALK = 5
"""The folder is walked at every so many."""


def run_to_end(running: Running, stdin: bytes, full: Callable[[], str | None]) -> Outcome:
    """Wait for a program to end by itself or by a limit.

    Args:
        running: the program; nothing of it is left afterwards.
        stdin: its input.
        full: says in a sentence that the folder holds too much, if it does.
    """
    began = time.monotonic()
    outputs = {running.stdout: bytearray(), running.stderr: bytearray()}
    try:
        fault = _exchange(running, memoryview(stdin), outputs, began, full)
    finally:
        running.kill()
        end = running.reap()
    seconds = time.monotonic() - began
    stdout, stderr = (bytes(text[: running.limits.output_kib << 10]) for text in outputs.values())
    status, code, reason = verdict(end, fault, running)
    return Outcome(status=status, code=code, stdout=stdout, stderr=stderr, seconds=seconds, reason=reason)


def verdict(end: End, fault: Fault | None, running: Running) -> tuple[Status, int | None, str]:
    """Status, code and reason of a program that ended, or that was killed for a fault."""
    limits = running.limits
    if fault is not None:
        return fault[0], None, fault[1]
    if end.killed_for_memory:
        return "memory", None, f"it used more than {limits.memory_mib} MiB of memory"
    number = end.code - 128
    if number == signal.SIGXCPU or (number == signal.SIGKILL and end.cpu_s >= limits.cpu_s):
        return "cpu", None, f"it used more than {limits.cpu_s:g} s of CPU time"
    if number == signal.SIGXFSZ:
        most = f"of more than {limits.file_mib} MiB" if running.writes else "while its folder holds too much; it can only remove some"
        return "output", None, f"it wrote a file {most}"
    if number in signal.valid_signals():
        return "signalled", number, f"it was ended by {signal.Signals(number).name}"
    return "exited", end.code, ""


def _exchange(
    running: Running, stdin: memoryview, outputs: dict[int, bytearray], began: float, full: Callable[[], str | None]
) -> Fault | None:
    limits = running.limits
    most_bytes, deadline = limits.output_kib << 10, began + limits.wall_s
    looking, looks = began + LOOK_S, 0
    with selectors.DefaultSelector() as selector:
        for fd in (running.stdout, running.stderr, running.ended_fd):
            selector.register(fd, selectors.EVENT_READ)
        selector.register(running.stdin, selectors.EVENT_WRITE)
        while True:
            for key, _ in selector.select(max(0.0, min(looking, deadline) - time.monotonic())):
                fd = key.fd
                if fd == running.stdin:
                    stdin = feed(fd, stdin)
                    if not stdin:
                        selector.unregister(fd)
                        running.close_stdin()
                elif fd == running.ended_fd:
                    return _rest(outputs, most_bytes)
                elif not take(fd, outputs[fd], most_bytes):
                    selector.unregister(fd)
                elif len(outputs[fd]) > most_bytes:
                    return "output", f"it printed more than {limits.output_kib} KiB"
            now = time.monotonic()
            if now >= deadline:
                return "timeout", f"it ran for more than {limits.wall_s:g} s"
            if now >= looking:
                looks += 1
                if fault := look(running, full if looks % LOOKS_A_WALK == 0 else None):
                    return fault
                looking = now + LOOK_S + 2 * (time.monotonic() - now)  # at most half of the time is spent looking


def look(running: Running, full: Callable[[], str | None] | None, since_cpu_s: float = 0.0) -> Fault | None:
    """Which limit a program breaks at this moment."""
    if fault := running.broken_limit(since_cpu_s):
        return fault
    text = full() if full else None
    return ("output", text) if text else None


def _rest(outputs: dict[int, bytearray], most_bytes: int) -> Fault | None:
    """Read what an ended program has left in its pipes."""
    for fd, text in outputs.items():
        while len(text) <= most_bytes:
            before = len(text)
            if not take(fd, text, most_bytes) or len(text) == before:
                break
        if len(text) > most_bytes:
            return "output", f"it printed more than {most_bytes >> 10} KiB"
    return None


def take(fd: int, text: bytearray, most_bytes: int) -> bool:
    """Read a chunk where there is one; False at the end of the stream. Keeps one byte more than `most_bytes`, at most."""
    try:
        chunk = os.read(fd, CHUNK_BYTES)
    except BlockingIOError:
        return True
    text += chunk[: most_bytes + 1 - len(text)]
    return bool(chunk)


def feed(fd: int, data: memoryview) -> memoryview:
    """Write what the pipe takes, and return the rest: nothing where nobody reads any more."""
    with contextlib.suppress(BlockingIOError):
        try:
            return data[os.write(fd, data[:CHUNK_BYTES]) :] if data else data
        except BrokenPipeError:
            return data[:0]
    return data
