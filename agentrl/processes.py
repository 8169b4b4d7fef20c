"""Child processes of the supervisor: started in sessions of their own, watched without polling, ended for certain.

A child ends by itself when its parent dies (`agentrl.lifeline`), so even `kill -9` of the supervisor leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
"""Linux ends a child when the *thread* that started it ends (PR_SET_PDEATHSIG), so one lasting thread starts them all."""


@dataclass
class Child:
    """A running child: its handle, its name in messages, and where its error output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    expected_to_end: bool = False
    """Set before the supervisor ends it, so that its end is no failure."""

    def describe_end(self) -> str:
        """One line that names the exit and the child's own last words."""
        code = self.process.poll()
        how = "still runs" if code is None else f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (if nobody did that, the machine ran out of memory)"
        tail = last_lines(self.log, 8)
        return f"{self.name} {how}" + (f"; its last lines ({self.log}):\n{tail}" if tail else f" and wrote nothing to {self.log}")

    def ended_by(self, number: signal.Signals, within_s: float = 1.0) -> bool:
        """Whether a signal has ended it, or does very soon."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(within_s) == -number
        return False

    def watch(self, on_end: Callable[[Child], None]) -> None:
        """Call `on_end` from a thread of its own as soon as the child ends, unless that was expected."""

        def wait() -> None:
            self.process.wait()
            if not self.expected_to_end:
                on_end(self)

        threading.Thread(target=wait, name=f"watch-{self.name}", daemon=True).start()

    def stop(self, grace_s: float = 3.0) -> None:
        """End the child and everything it started: SIGTERM, then SIGKILL to its whole process group; always reaped."""
        self.expected_to_end = True
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start_child(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    pass_fds: Sequence[int] = (),
    environment: dict[str, str] | None = None,
    below: Sequence[str] = (),
) -> Child:
    """Start `python -m module arguments` in a session and process group of its own, its error output appended to `log`.

    Args:
        name: for messages.
        module: what runs.
        arguments: of its command line.
        log: a file.
        pass_fds: descriptors that the child inherits.
        environment: variables on top of this process's own.
        below: a command that starts the child's, and is the child itself here; its input is a pipe.
    """
    log.parent.mkdir(parents=True, exist_ok=True)

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [*below, sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE if below else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": import_path(), **(environment or {})},
            )

    return Child(name=name, process=_starter.submit(start).result(), log=log)


def launched_rank(environ: Mapping[str, str] = os.environ) -> int:
    """The number that `accelerate launch` or torchrun gave this process; 0 for a single one, whatever else has set RANK."""
    try:
        return int(environ.get("RANK", "0")) if int(environ.get("WORLD_SIZE", "1")) > 1 else 0
    except ValueError:
        return 0


def import_path() -> str:
    """PYTHONPATH for children: they find the modules that this process finds, also those beside its script."""
    installed = tuple(str(Path(prefix).resolve()) + os.sep for prefix in {sys.prefix, sys.base_prefix})
    own = [str(Path(entry).resolve()) for entry in sys.path if entry]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(entry for entry in [*given, *(one for one in own if not one.startswith(installed))] if entry))


def last_lines(path: Path, count: int) -> str:
    """The last lines of a text file, empty where there is none."""
    try:
        with path.open("rb") as file:
            return b"".join(deque(file, maxlen=count)).decode(errors="replace").rstrip()
    except OSError:
        return ""
