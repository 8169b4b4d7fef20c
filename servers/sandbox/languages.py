"""The interpreters of persistent sessions: how each is started, asked and interrupted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentrl.servers.sandbox import python_driver, tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.servers.sandbox.limits import Limits
    from agentrl.servers.sandbox.running import Running

SHELL_DRIVER = """
exec 3<&0 4>&1 0</dev/null 1>&2
while IFS= read -r -d '' -u 3 agentrl_number && IFS= read -r -d '' -u 3 agentrl_command; do
  eval "$agentrl_command" 3<&- 4>&-
  printf '%s %s\\n' "$agentrl_number" "$?" >&4
done
"""

INTERRUPTIBLE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
"""A run in the background of a script ignores SIGINT, its children inherit that, and Bash cannot take it back."""


class Launcher(Protocol):
    """What starts programs: `Bubblewrap`, `Unconfined`."""

    confined: bool
    interpreter: str

    def start(self, command: Sequence[str], limits: Limits, *, cpu_s: float | None = None, writes: bool = True) -> Running:
        """Start a program."""
        ...


class Language(Protocol):
    """An interpreter that answers requests."""

    def command(self, launcher: Launcher) -> Sequence[str]:
        """What starts it."""
        ...

    def refusal(self, code: str) -> str | None:
        """Why a piece of code cannot be sent, if it cannot."""
        ...

    def request(self, number: str, code: bytes) -> bytes:
        """A request as it reads it."""
        ...

    def interrupt(self, driver: int, root: int, before: set[int], *, again: bool) -> None:
        """Try to stop what runs without losing the session.

        Args:
            driver: process of the interpreter, which may be younger than the first call.
            root: of the tree.
            before: members of the tree when the call began.
            again: whether that was tried for long enough.
        """
        ...

    def end_interrupted(self, driver: int, root: int, before: set[int]) -> None:
        """After the answer of a call that was interrupted: leave nothing of it that still dies of the interruption.

        Args:
            driver: process of the interpreter, which may be younger than the first call.
            root: of the tree.
            before: members of the tree when the call began.
        """
        ...


class Python:
    """CPython, with its standard library."""

    def command(self, launcher: Launcher) -> Sequence[str]:
        """The driver's text as an argument: nothing of it has to be in the sandbox."""
        return [launcher.interpreter, "-I", "-c", Path(python_driver.__file__).read_text(encoding="utf-8")]

    def refusal(self, code: str) -> str | None:
        """Python itself refuses what is none."""
        return None

    def request(self, number: str, code: bytes) -> bytes:
        """Number and size on a line, then the code."""
        return b"%s %d\n%s" % (number.encode(), len(code), code)

    def interrupt(self, driver: int, root: int, before: set[int], *, again: bool) -> None:
        """Raises KeyboardInterrupt there."""
        tree.signal_some(root, [driver], signal.SIGINT)

    def end_interrupted(self, driver: int, root: int, before: set[int]) -> None:
        """Only the interpreter itself was interrupted, and it has answered."""


class Shell:
    """Bash."""

    def command(self, launcher: Launcher) -> Sequence[str]:
        """Bash without the user's own files, and with an interruption that ends what it starts."""
        return [launcher.interpreter, "-I", "-S", "-c", INTERRUPTIBLE, "bash", "--noprofile", "--norc", "-c", SHELL_DRIVER]

    def refusal(self, code: str) -> str | None:
        """Bash has no zero bytes."""
        return "a command cannot hold a zero byte" if "\0" in code else None

    def request(self, number: str, code: bytes) -> bytes:
        """Number and command, each ended by a zero byte."""
        return b"%s\0%s\0" % (number.encode(), code)

    def interrupt(self, driver: int, root: int, before: set[int], *, again: bool) -> None:
        """Ends what the command started; what ran in the background before is spared."""
        number = signal.SIGKILL if again else signal.SIGINT
        tree.signal_some(root, set(tree.members(root)) - before - {driver}, number)

    def end_interrupted(self, driver: int, root: int, before: set[int]) -> None:
        """Kills what got the interruption and is slower to die than Bash to answer; background jobs ignore it, and are spared."""
        late = [pid for pid in set(tree.members(root)) - before - {driver} if not tree.ignores(pid, signal.SIGINT)]
        tree.signal_some(root, late, signal.SIGKILL)
