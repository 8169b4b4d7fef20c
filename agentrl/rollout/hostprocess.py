"""The process of an environment worker, seen from its parent: started, watched, and ended with all that user code started in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from typing import TYPE_CHECKING, Protocol

import trio

from agentrl.processes import Child, last_lines, start_child
from agentrl.rollout.guardian import MARK, SIGNALLED, guarded, kill_marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Launch = Callable[[int], "HostProcess"]
    """Starts the worker of a slot."""

REAP_S = 10.0
"""Killed processes end at once, unless the kernel itself hangs in one; the guardian gives up before this."""


class HostProcess(Protocol):
    """A started worker."""

    stream: trio.abc.Stream
    """Frames of `agentrl.rollout.messages`."""

    async def ended(self) -> None:
        """Wait until the process has ended by itself."""
        ...

    async def end(self) -> str:
        """Kill it and its descendants, reap it, and say how it ended: `was killed by SIGKILL`, `ended with status 3`."""
        ...

    def last_words(self) -> str:
        """The end of what it wrote."""
        ...


class LocalHost:
    """A worker on this machine, below a guardian that ends it with all it started, also where this process is killed.

    Args:
        name: for messages.
        log: file that what user code prints is appended to.
        environment: variables on top of this process's own.
    """

    def __init__(self, name: str, log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._child = _start(name, theirs, self._mark, log, environment or {})
            self.stream: trio.abc.Stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        except BaseException:
            ours.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the guardian, which ends as the worker did."""
        return self._child.process.pid

    async def ended(self) -> None:
        """Wait for the process itself: a child that user code forked may keep the socket open past its death."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # no Linux, or an old one: the closed socket alone tells
            await trio.sleep_forever()
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    async def end(self) -> str:
        """Have the guardian kill the worker and its descendants, and wait for that."""
        await self.stream.aclose()
        return await trio.to_thread.run_sync(self._end)

    def _end(self) -> str:
        process = self._child.process
        assert process.stdin is not None
        process.stdin.close()
        try:
            code = process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            return f"did not end within {REAP_S:g} s"
        if code < 0:  # the guardian itself was killed: the worker ended with it, and what that started may be left
            kill_marked(self._mark)
        number = -code if code < 0 else code - SIGNALLED
        return f"was killed by {signal.Signals(number).name}" if number in set(signal.Signals) else f"ended with status {code}"

    def last_words(self) -> str:
        """The last lines of its log."""
        return last_lines(self._child.log, 8)


def _start(name: str, sock: socket.socket, mark: str, log: Path, environment: Mapping[str, str]) -> Child:
    # hashes are not randomized, so that an environment that walks a set plays the same episode in every worker; one thread for
    # numerical libraries, because there are several workers beside an engine and a learner
    defaults = {key: os.environ.get(key, value) for key, value in (("PYTHONHASHSEED", "0"), ("OMP_NUM_THREADS", "1"))}
    return start_child(
        name,
        "agentrl.rollout.host",
        [str(sock.fileno())],
        log=log,
        pass_fds=[sock.fileno()],
        environment={**defaults, **environment, MARK: mark},
        below=guarded(sock.fileno()),
    )
