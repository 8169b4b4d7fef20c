"""Programs as plain subprocesses: limits and a clock, and no isolation whatsoever. Only for programs that may do what the user may do."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from agentrl.servers.sandbox.ground import ground
from agentrl.servers.sandbox.limits import SandboxUnavailable
from agentrl.servers.sandbox.running import Pipes, Running, rlimits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentrl.servers.sandbox.limits import Limits


class Unconfined:
    """Starts programs in a folder, without a sandbox around them. A child that leaves the tree may outlive it.

    Args:
        folder: where they start.
    """

    confined = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.interpreter = sys.executable

    def start(self, command: Sequence[str], limits: Limits, *, cpu_s: float | None = None, writes: bool = True) -> Running:
        """Start a program, which runs when this returns. Raises `SandboxUnavailable`.

        Args:
            command: program and arguments.
            limits: of all its processes.
            cpu_s: of any one process, where that is not the limits'.
            writes: whether it may write files at all.
        """
        prlimit = shutil.which("prlimit")
        if prlimit is None:
            raise SandboxUnavailable("there is no `prlimit` in PATH, which sets the limits of a subprocess: apt-get install util-linux")
        # no limit of processes: it would count all of the user's; the parent watches the tree instead
        words = [prlimit, *rlimits(limits, cpu_s, writes), "--", "/bin/sh", "-c", 'exec "$@"', "sh", *command]
        pipes = Pipes.make(None)
        try:
            stdin, stdout, stderr = pipes.theirs
            process = ground().start(
                words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, env=self._variables(), cwd=self._folder
            )
        except BaseException:
            pipes.close(pipes.ours)
            raise
        finally:
            pipes.close(pipes.theirs)
        stdin, stdout, stderr = pipes.ours
        return Running(
            process=process, root=process.pid, root_fd=os.pidfd_open(process.pid), ended_fd=os.pidfd_open(process.pid), stdin=stdin,
            stdout=stdout, stderr=stderr, limits=limits, cage=None, confined=False, writes=writes,
        )  # fmt: skip

    def _variables(self) -> dict[str, str]:
        folder = str(self._folder)
        path = os.pathsep.join([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"])
        return {"PATH": path, "HOME": folder, "PWD": folder, "LANG": "C.UTF-8", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
