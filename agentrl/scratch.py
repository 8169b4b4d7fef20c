"""Temporary folders that are gone when their maker is, even one that was ended by `kill -9`.

Each is removed by a small process of its own: this file as a script, without agentrl or anything else but the standard library. It waits
until its input closes, however that came about.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

MOST_FOLDER_BYTES = 80
"""With a file name behind it, this is below the 104 bytes that macOS allows for a Unix socket's path; Linux allows 108."""
ROUNDS = 10
"""Others that end in the same moment may still write into the folder while it is emptied."""


class ScratchFolder:
    """A private temporary folder, short enough for a Unix socket whatever TMPDIR is; a context manager that gives its path.

    Args:
        prefix: of its name.
    """

    def __init__(self, prefix: str = "agentrl-") -> None:
        name = prefix + secrets.token_hex(8)
        path = Path(tempfile.gettempdir(), name)
        self.path = path if len(os.fsencode(path)) <= MOST_FOLDER_BYTES else Path("/tmp", name)
        # started before the folder is made, so that there is no moment in which nobody would remove it; in a session of its own, so
        # that what ends this process's group spares it
        self._remover = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.path.mkdir(mode=0o700)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Have it removed, and wait for that; may be called again."""
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait()
        remove(self.path)  # where somebody killed the process that should have done it


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    for _ in range(ROUNDS):
        with contextlib.suppress(RecursionError):  # a program nested folders deeper than Python goes
            shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        subprocess.run(["rm", "-rf", "--", path], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def main() -> None:
    """Entry point of the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")  # it must not keep its starter's folder in use
    sys.stdin.read()
    remove(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
