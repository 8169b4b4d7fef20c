"""What every kind of sandbox offers, and what comes back from it: the part that others code against."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol

from agentrl.errors import AgentRLError, ConfigError, EnvironmentFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

Status = Literal["exited", "signalled", "timeout", "cpu", "memory", "output"]
"""How a program ended: by itself, by a signal, or by the limit that it broke (`output` also stands for the disk)."""

INSIDE = "/sandbox"
"""Where a program finds its sandbox's own folder, and where it starts."""


class SandboxUnavailable(EnvironmentFailure):
    """The sandbox could not do what was asked; says nothing about the program, so it never becomes a verdict."""


class SandboxFileError(AgentRLError):
    """A file of the sandbox's folder cannot be read or written as asked: it is missing, too large, no file, or a way out of the folder."""


@contextlib.contextmanager
def as_unavailable(what: str) -> Iterator[None]:
    """Turn the system's refusals (no descriptor, process or space left) into `SandboxUnavailable`."""
    try:
        yield
    except OSError as error:
        raise SandboxUnavailable(f"{what}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program, with everything that it starts, may use."""

    cpu_s: float = 10
    """CPU time of any one process, and of all together where they can be watched."""
    wall_s: float = 20
    """Time until it is killed, by the clock of the process that asked."""
    memory_mib: int = 512
    """Of all processes together, and of any one of them."""
    processes: int = 32
    """At once, threads included."""
    file_mib: int = 64
    """Largest file that it can write, and size of its /tmp."""
    output_kib: int = 256
    """Of standard output and error each; one byte more and the program is killed."""
    open_files: int = 256
    """Descriptors of any one process."""
    folder_mib: int = 256
    """All that the sandbox's folder may hold, measured a few times a second."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
                raise ConfigError(f"sandbox limit {one.name} is {value!r}; it must be a number above 0 and at most {MOST}")


MOST = 10**9
"""Of any limit, in its own unit: more than any machine has, and small enough for every system call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program ended and what it wrote: its own success or fault, never that of the sandbox."""

    status: Status
    code: int | None
    """Exit status where it exited, number of the signal where it was signalled, else None."""
    stdout: bytes
    """As it was written, cut at the limit."""
    stderr: bytes
    seconds: float
    """Wall clock."""
    reason: str
    """One sentence that names the limit and its value; empty where the program exited."""

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.status == "exited" and self.code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a persistent session answered to one piece of code."""

    status: Status
    code: int | None
    """Python: 0, or 1 after an exception. Shell: exit status of the last command. None where the session was stopped."""
    output: bytes
    """What was printed, standard output and error together, cut at the limit."""
    seconds: float
    reason: str
    """Empty where the code ran to its end."""
    alive: bool
    """Whether the session kept its state; where not, the next call starts a new one."""

    @property
    def text(self) -> str:
        """The output, and the reason if there is one, as a model may read it."""
        printed = self.output.decode("utf-8", errors="replace")
        gap = "" if not printed or printed.endswith("\n") else "\n"
        return f"{printed}{gap}[{self.reason}]" if self.reason else printed


class Session(Protocol):
    """A persistent interpreter inside a sandbox: what one call leaves behind, the next one finds."""

    def run(self, code: str, timeout_s: float | None = None) -> Turn:
        """Run a piece of code; past the deadline (by default the sandbox's `wall_s`) it is interrupted, and killed if that does not help.

        Raises `SandboxUnavailable`.
        """
        ...

    def close(self) -> None:
        """End it with everything that it started; may be called again."""
        ...


class Sandbox(Protocol):
    """A place for programs that are not trusted, with a folder of its own; one an episode."""

    @property
    def limits(self) -> Limits:
        """Those of a program that is given none."""
        ...

    def run(self, command: Sequence[str], *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """Run a program to its end, or to the first limit that it breaks. Raises `SandboxUnavailable`.

        Args:
            command: program and arguments; the program is looked up in the sandbox.
            stdin: its whole standard input, of any size.
            limits: in place of the sandbox's.
        """
        ...

    def read(self, path: str, *, most_bytes: int | None = None) -> bytes:
        """A file of the folder. Raises `SandboxFileError` for what is no regular file, leads out, or is larger than `most_bytes`."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the folder whole, with the folders that lead to it. Raises `SandboxFileError`."""
        ...

    def listing(self, path: str = ".") -> list[str]:
        """Everything below a folder, as sorted paths from there; folders end in a slash, links in `@`, and neither is followed."""
        ...

    def python(self) -> Session:
        """Start a Python interpreter that keeps its variables."""
        ...

    def shell(self) -> Session:
        """Start a shell that keeps its folder and variables."""
        ...

    def close(self) -> None:
        """End everything that runs in it and remove its folder; may be called again."""
        ...

    def __enter__(self) -> Sandbox: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
