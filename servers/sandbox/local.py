"""A sandbox on this machine: one folder, and programs that are started in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from agentrl.servers.sandbox.bubblewrap import Bubblewrap, bwrap
from agentrl.servers.sandbox.folder import Folder, Quota
from agentrl.servers.sandbox.ground import ground, new_user, remove_tree
from agentrl.servers.sandbox.languages import Python, Shell
from agentrl.servers.sandbox.limits import Limits, SandboxUnavailable, as_unavailable
from agentrl.servers.sandbox.pump import run_to_end
from agentrl.servers.sandbox.sessions import LocalSession
from agentrl.servers.sandbox.unconfined import Unconfined

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from agentrl.servers.sandbox.languages import Language, Launcher
    from agentrl.servers.sandbox.limits import Outcome
    from agentrl.servers.sandbox.running import Running
    from agentrl.servers.sandbox.view import Packages


class LocalSandbox:
    """Programs of one folder; see `agentrl.servers.sandbox.limits.Sandbox`.

    Args:
        launcher: starts them.
        path: the folder, which is removed at the end.
        user: owner of the folder; None for this process's own user.
        limits: of a program that is given none.
    """

    def __init__(self, launcher: Launcher, path: Path, user: int | None, limits: Limits) -> None:
        self._launcher, self._path, self._limits = launcher, path, limits
        self._folder = Folder(path, user)
        self._quota = Quota(self._folder)
        self._sessions: list[LocalSession] = []
        self._programs: list[Running] = []
        self._closed = False

    @property
    def limits(self) -> Limits:
        """Those of a program that is given none."""
        return self._limits

    def run(self, command: Sequence[str], *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """Run a program to its end, or to the first limit that it breaks."""
        self._check_open()
        limits = limits or self._limits
        command = _checked(command)
        with as_unavailable("a program could not be run in its sandbox"):
            over, watch = self._quota.over, self._quota.watch(limits.folder_mib << 20)
            running = self._launcher.start(command, limits, writes=not over)
            self._programs.append(running)
            if self._closed:  # while it started
                running.kill()
            try:
                outcome = run_to_end(running, stdin, watch)
            finally:
                self._programs.remove(running)
        self._check_open()  # else it was the closing that ended the program
        excess = self._quota.measure(limits.folder_mib << 20)
        if excess and not over and outcome.status in ("exited", "signalled"):
            return dataclasses.replace(outcome, status="output", code=None, reason=excess)
        return outcome

    def read(self, path: str, *, most_bytes: int | None = None) -> bytes:
        """A file of the folder."""
        self._check_open()
        return self._folder.read(path, self._limits.file_mib << 20 if most_bytes is None else most_bytes)

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the folder whole."""
        self._check_open()
        self._folder.write(path, data)

    def listing(self, path: str = ".") -> list[str]:
        """Everything below a folder."""
        self._check_open()
        return self._folder.listing(path)

    def python(self) -> LocalSession:
        """Start a Python interpreter that keeps its variables."""
        return self._session(Python())

    def shell(self) -> LocalSession:
        """Start a shell that keeps its folder and variables."""
        return self._session(Shell())

    def close(self) -> None:
        """End everything that runs in it and remove its folder; may be called again."""
        self._closed = True
        for program in list(self._programs):
            program.kill()
        for session in self._sessions:
            session.close()
        remove_tree(self._path)

    def _session(self, language: Language) -> LocalSession:
        self._check_open()
        session = LocalSession(self._launcher, language, self._limits, self._quota)
        self._sessions.append(session)
        return session

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxUnavailable("this sandbox was closed; open another one")

    def __enter__(self) -> LocalSandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_bubblewrap(limits: Limits, packages: Packages) -> LocalSandbox:
    """A sandbox under Bubblewrap. Raises `SandboxUnavailable`."""
    bwrap()
    user = new_user()
    with as_unavailable("a sandbox could not get a folder"):
        folder = ground().new_folder(user)
    return LocalSandbox(Bubblewrap(folder, user, packages=packages), folder, user, limits)


def open_unconfined(limits: Limits) -> LocalSandbox:
    """No sandbox at all behind the same interface."""
    with as_unavailable("a sandbox could not get a folder"):
        folder = ground().new_folder(None)
    return LocalSandbox(Unconfined(folder), folder, None, limits)


def _checked(command: Any) -> list[str]:
    """A command that the system takes. Raises `ValueError`."""
    if isinstance(command, str) or not command or not all(isinstance(word, str) and "\0" not in word for word in command):
        raise ValueError(f"a command is a list of words without zero bytes, the program first, got {command!r:.200}")
    return list(command)
