"""Ready tools over a sandbox: run Python or a shell, read, write, list and edit files. For an environment's `toolbox`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentrl.errors import ConfigError
from agentrl.servers.sandbox import Sandbox, SandboxFileError, Session, Turn

TOOLS = ("run_python", "run_shell", "read_file", "write_file", "edit_file", "list_files")
MOST_FILE_BYTES = 1 << 20
"""Of a file that is read into a conversation."""
MOST_LISTED = 200


class SandboxTools:
    """Tools that all act on one sandbox; the Python session and the shell start at their first use and keep their state.

    What a program did wrong, a missing file or a time-out is text for the model. A sandbox that fails raises `SandboxUnavailable`, which
    makes the episode unscorable.

    Example: `def toolbox(self): return SandboxTools(self.sandbox).choose("run_python", "read_file")`.

    Args:
        sandbox: stays the caller's, who closes it.
        timeout_s: of one call; it should be shorter than `rollout.tool_timeout_s`.
    """

    def __init__(self, sandbox: Sandbox, *, timeout_s: float | None = None) -> None:
        self._sandbox, self._timeout_s = sandbox, timeout_s
        self._sessions: dict[str, Session] = {}

    def choose(self, *names: str) -> Sequence[Callable[..., Any]]:
        """The tools of these names, or all of them; in the order given. Raises `ConfigError` for another name."""
        if unknown := [name for name in names if name not in TOOLS]:
            raise ConfigError(f"there is no sandbox tool {unknown[0]!r}; there are {', '.join(TOOLS)}")
        return [getattr(self, name) for name in names or TOOLS]

    def run_python(self, code: str) -> str:
        """Run Python code in a session that keeps its variables. Returns what it prints, and the value of a last expression.

        Args:
            code: Python statements.
        """
        return _shown(self._session("python").run(code, self._timeout_s))

    def run_shell(self, command: str) -> str:
        """Run a command in a bash session that keeps its folder and variables. Returns its output, and its exit status if not 0.

        Args:
            command: One or more lines of shell.
        """
        turn = self._session("shell").run(command, self._timeout_s)
        return _shown(turn) + (f"\n[exit status {turn.code}]" if turn.code and turn.alive else "")

    def read_file(self, path: str) -> str:
        """Read a text file.

        Args:
            path: Path of the file, from the working folder.
        """
        try:
            return self._sandbox.read(path, most_bytes=MOST_FILE_BYTES).decode("utf-8", errors="replace")
        except SandboxFileError as error:
            return f"error: {error}"

    def write_file(self, path: str, content: str) -> str:
        """Write a text file, in place of what it held. Folders that lead to it are made.

        Args:
            path: Path of the file, from the working folder.
            content: All that the file shall hold.
        """
        return self._written(path, content)

    def edit_file(self, path: str, old: str, new: str) -> str:
        """Replace a piece of a text file that occurs in it exactly once.

        Args:
            path: Path of the file, from the working folder.
            old: The text to replace, as it stands in the file.
            new: The text to put in its place.
        """
        try:
            text = self._sandbox.read(path, most_bytes=MOST_FILE_BYTES).decode("utf-8")
        except SandboxFileError as error:
            return f"error: {error}"
        except UnicodeDecodeError:
            return f"error: {path} is no text in UTF-8"
        count = text.count(old) if old else 0
        if count != 1:
            return f"error: `old` occurs {count} times in {path}; it must occur exactly once, so give more of the text around it"
        return self._written(path, text.replace(old, new))

    def list_files(self, path: str = ".") -> str:
        """List a folder and everything below it; folders end in a slash, links in @.

        Args:
            path: Path of the folder, from the working folder.
        """
        try:
            names = self._sandbox.listing(path)
        except SandboxFileError as error:
            return f"error: {error}"
        rest = [f"... and {len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else []
        return "\n".join([*names[:MOST_LISTED], *rest]) or "(empty)"

    def _session(self, name: str) -> Session:
        if name not in self._sessions:
            self._sessions[name] = getattr(self._sandbox, name)()
        return self._sessions[name]

    def _written(self, path: str, content: str) -> str:
        data = content.encode("utf-8", errors="replace")
        try:
            self._sandbox.write(path, data)
        except SandboxFileError as error:
            return f"error: {error}"
        return f"wrote {len(data)} bytes to {path}"


def _shown(turn: Turn) -> str:
    return turn.text.rstrip("\n") or "(no output)"
