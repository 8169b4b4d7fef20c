"""The last one out: a small process that outlives a killed rollout process just long enough to end its environment workers.

Run as a script, without agentrl or anything else but the standard library. It reads `watch MARK GROUP` and `forget MARK` lines; at the
end of its input, however that came about, it kills every group that is still watched and every process that carries one of the marks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

MARK = "AGENTRL_ENV_WORKER"
"""Environment variable with a value of its own for each worker: descendants that left the process group are found by it."""
KILL_ROUNDS = 10


class Guardian:
    """The guardian as its rollout process sees it. A context manager; leaving it while workers are watched kills them."""

    def __init__(self) -> None:
        command = [sys.executable, "-E", "-S", __file__]
        # a session of its own: it must survive a kill of the rollout process's group
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def __enter__(self) -> Guardian:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def watch(self, mark: str, group: int) -> None:
        """End this worker when the rollout process ends."""
        self._tell(f"watch {mark} {group}\n")

    def forget(self, mark: str) -> None:
        """This worker has been ended."""
        self._tell(f"forget {mark}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: workers still end by their own means
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def kill_group(mark: str, group: int) -> None:
    """Kill a process group, and every process that inherited the mark. The group's leader must not have been reaped yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    for _ in range(KILL_ROUNDS):  # again where one of them was just starting another
        if not _kill_marked(mark):
            return


def _kill_marked(mark: str) -> bool:
    """Whether there was one to kill. Does nothing where there is no /proc."""
    sought = f"{MARK}={mark}".encode()
    found = False
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to someone else
            if sought in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
                found = True
    return found


def main() -> None:
    """Entry point of the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[str, int] = {}
    for line in sys.stdin:
        what, mark, *group = line.split()
        if what == "watch":
            watched[mark] = int(group[0])
        else:
            watched.pop(mark, None)
    for mark, leader in watched.items():
        kill_group(mark, leader)


if __name__ == "__main__":
    main()
