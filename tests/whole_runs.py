"""Runs of the command line in processes of their own: started, watched through what they print, and checked to leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

MARK = "AGENTRL_TEST_MARK"
"""Environment variable with a value of its own for each run; whatever the run starts inherits it."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps compiled code for good; by default in the temporary folder, which a run is to leave empty."""


class WholeRun:
    """`agentrl ARGUMENTS` in `folder`, a context manager; leaving it ends the run and checks that no process and no temporary file is left.

    Args:
        limit: called in the child before it starts.
    """

    def __init__(self, folder: Path, *arguments: str, limit=None) -> None:
        self._mark = uuid.uuid4().hex
        self._errors = (folder / f"errors-{self._mark}.txt").open("w+b")
        self._temporary = tempfile.mkdtemp(prefix="t-")  # not below `folder`, whose path is too long for sockets
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentrl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            text=True,
            env={**os.environ, MARK: self._mark, "PYTHONUNBUFFERED": "1", "TMPDIR": self._temporary, CACHE: str(folder / "torch-cache")},
            preexec_fn=limit,
        )

    def __enter__(self) -> WholeRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        left = self._left_within(10)
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        kept = os.listdir(self._temporary)
        shutil.rmtree(self._temporary)
        assert not left, f"processes outlived their run: {left}"
        assert not kept, f"a run left in its temporary folder: {kept}"

    def wait_for(self, text: str) -> str:
        """The next line of its output that begins so; fails where it ends without."""
        for line in self._process.stdout:
            if line.startswith(text):
                return line
        raise AssertionError(f"it ended with {self._process.wait()} and never said {text!r}: {self.errors()}")

    def send(self, signal: int) -> None:
        """Signal the run itself."""
        self._process.send_signal(signal)

    def kill(self, part: str) -> None:
        """`kill -9` its processes whose command line has this in it."""
        victims = [pid for pid, command in self._processes() if part in command]
        assert victims, f"no process of the run has {part!r} in its command line"
        for pid in victims:
            os.kill(pid, 9)

    def end(self, timeout_s: float = 120) -> tuple[int, str, str]:
        """Wait for its end; returns its exit status, the rest of its output, and its error output."""
        output, _ = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, output, self.errors()

    def errors(self) -> str:
        """Its error output so far."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def _left_within(self, seconds: float) -> list[tuple[int, str]]:
        deadline = time.monotonic() + seconds
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _processes(self) -> list[tuple[int, str]]:
        """Id and command line of its living processes, through /proc; none where there is none."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append((int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")))
        return found
