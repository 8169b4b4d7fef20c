"""Files of a sandbox's folder, opened by the process outside, which may do more than the program that made them.

The program can put links, devices and pipes anywhere in its folder, and swap them while a path is being walked. So each component is opened
from the one before it and never through a link, and only a regular file is read or written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from agentrl.servers.sandbox.limits import INSIDE, SandboxFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MOST_PARTS = 64
"""Of a path. What lies deeper could not be measured."""
MOST_ENTRIES = 20_000
"""In a folder: more than that is reported as being full."""
MOST_LISTED_CHARS = 4 << 20
"""Of all names in a list: 20,000 deep paths could be hundreds of megabytes."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that a program which is not trusted writes to."""

    path: Path
    user: int | None
    """Owner of what is written here; None for this process's user."""

    def read(self, path: str, most_bytes: int) -> bytes:
        """A regular file, whole. Raises `SandboxFileError`."""
        parts = components(path)
        with self._opened(parts[:-1], path) as folder, _explained(path):
            fd = os.open(parts[-1], os.O_RDONLY | _FILE, dir_fd=folder)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise SandboxFileError(f"{path} is {_kind(found.st_mode)}, not a file")
                if found.st_size > most_bytes:
                    raise SandboxFileError(f"{path} is larger than {most_bytes} bytes; a program in the sandbox can read a part of it")
                data = bytearray()
                while len(data) <= most_bytes and (chunk := os.read(fd, 1 << 20)):
                    data += chunk
            finally:
                os.close(fd)
        if len(data) > most_bytes:  # it grew meanwhile
            raise SandboxFileError(f"{path} is larger than {most_bytes} bytes; a program in the sandbox can read a part of it")
        return bytes(data)

    def write(self, path: str, data: bytes) -> None:
        """Put a regular file in place at once, whatever was there but a folder. Raises `SandboxFileError`."""
        parts = components(path)
        with self._opened(parts[:-1], path, make=True) as folder, _explained(path):
            fresh = f".agentrl-{secrets.token_hex(8)}"
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o644, dir_fd=folder)
            try:
                with os.fdopen(fd, "wb") as file:
                    if self.user is not None:
                        os.fchown(fd, self.user, self.user)
                    os.fchmod(fd, _mode(parts[-1], folder))
                    file.write(data)
                os.rename(fresh, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(fresh, dir_fd=folder)
                raise

    def listing(self, path: str) -> list[str]:
        """Everything below a folder. Raises `SandboxFileError`, also where that is too much."""
        found: list[str] = []
        start = [] if path in ("", ".", INSIDE, f"{INSIDE}/") else components(path)
        chars = 0
        for name, entry in self._walk(start, path):
            name = os.fsencode(name).decode("utf-8", errors="replace")
            found.append(name + ("/" if entry.is_dir(follow_symlinks=False) else "@" if entry.is_symlink() else ""))
            chars += len(name)
            if len(found) > MOST_ENTRIES or chars > MOST_LISTED_CHARS:
                raise SandboxFileError(f"{path} holds more than {MOST_ENTRIES} entries, or longer names than anybody could read")
        return sorted(found)

    def excess(self, most_bytes: float, most_entries: int = MOST_ENTRIES) -> str | None:
        """A sentence where the folder holds too much; the walk ends as soon as it does."""
        total = entries = 0
        closed: list[str] = []
        try:
            for name, entry in self._walk([], ".", closed):
                entries += 1
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if name.count("/") >= MOST_PARTS and entry.is_dir(follow_symlinks=False):
                        return f"it nested folders more than {MOST_PARTS} deep"
                if total > most_bytes:
                    return f"its folder held more than {int(most_bytes) >> 20} MiB"
                if entries > most_entries:
                    return f"its folder held more than {most_entries} entries"
        except SandboxFileError as error:
            if isinstance(error.__context__, PermissionError):
                closed.append(INSIDE)
        return f"it closed the folder {closed[0]}, so that what is in there cannot be measured" if closed else None

    def _walk(self, start: list[str], path: str, closed: list[str] | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """(path below the start, entry), folder by folder; what is deeper than a path may be, or cannot be opened, is passed over."""
        waiting: list[list[str]] = [start]
        while waiting:
            parts = waiting.pop()
            with contextlib.ExitStack() as stack:
                try:
                    folder = stack.enter_context(self._opened(parts, path))
                except SandboxFileError as error:
                    if parts == start:
                        raise
                    if closed is not None and isinstance(error.__context__, PermissionError):
                        closed.append("/".join(parts))
                    continue
                for entry in stack.enter_context(os.scandir(folder)):
                    with contextlib.suppress(OSError):
                        if entry.is_dir(follow_symlinks=False) and len(parts) < MOST_PARTS:
                            waiting.append([*parts, entry.name])
                    yield "/".join([*parts[len(start) :], entry.name]), entry

    @contextlib.contextmanager
    def _opened(self, parts: list[str], path: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder below this one, reached without following any link."""
        with _explained(path):
            reopen(self.path)
            fd = os.open(self.path, _FOLDER)
        try:
            for part in parts:
                with _explained(path):
                    if make:
                        self._make_folder(part, fd)
                    deeper = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = deeper
            yield fd
        finally:
            os.close(fd)

    def _make_folder(self, name: str, folder: int) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
            if self.user is not None:
                os.chown(name, self.user, self.user, dir_fd=folder, follow_symlinks=False)


@dataclass
class Quota:
    """What a folder may hold. Once it holds more, programs may remove files but write none."""

    folder: Folder
    over: bool = False
    """Whether it held too much when it was measured last."""

    def watch(self, most_bytes: int) -> Callable[[], str | None]:
        """What measures the folder for a program that starts now: a sentence where it must be ended."""
        if self.over:
            return functools.partial(self.folder.excess, math.inf, 2 * MOST_ENTRIES)
        return functools.partial(self.measure, most_bytes)

    def measure(self, most_bytes: int) -> str | None:
        """A sentence where the folder holds too much."""
        reason = self.folder.excess(most_bytes)
        self.over = reason is not None
        return reason


def reopen(path: Path) -> None:
    """Give the owner of a sandbox's folder its rights to it back: a program that took them away could neither be measured nor replaced."""
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)


def components(path: str) -> list[str]:
    """Names that lead from the folder to a file; a path may start with the folder's place inside. Raises `SandboxFileError`."""
    pure = PurePosixPath(path)
    if pure.is_absolute():
        if not pure.is_relative_to(INSIDE):
            raise SandboxFileError(f"{path!r} lies outside of {INSIDE}; give a path below it")
        pure = pure.relative_to(INSIDE)
    parts = list(pure.parts)
    if not parts:
        raise SandboxFileError(f"{path!r} names no file; give a path below {INSIDE}")
    if ".." in parts or "\0" in path:
        raise SandboxFileError(f"{path!r} holds `..` or a zero byte; give a path below {INSIDE}, straight down")
    if len(parts) > MOST_PARTS:
        raise SandboxFileError(f"a path of {len(parts)} parts is too deep; at most {MOST_PARTS}")
    return parts


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn the system's refusals into words that do not name a path outside."""
    try:
        yield
    except UnicodeEncodeError:
        raise SandboxFileError(f"{path!r} cannot be the name of a file") from None
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, os.strerror(error.errno or 0).lower())
        raise SandboxFileError(f"{path}: {cause}") from None


_CAUSES = {
    errno.ENOENT: "there is no such file",
    errno.ELOOP: "it is, or leads through, a symbolic link, which is not followed",
    errno.ENOTDIR: "it leads through a file or a symbolic link, which is not followed",
    errno.EISDIR: "it is a folder",
    errno.ENXIO: "it is a pipe, a socket or a device, not a file",
}


def _mode(name: str, folder: int) -> int:
    """Permissions of a file that replaces this one: a program that can be run stays one."""
    with contextlib.suppress(OSError):
        old = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        return 0o755 if stat.S_ISREG(old) and old & 0o100 else 0o644
    return 0o644


def _kind(mode: int) -> str:
    names = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return names.get(stat.S_IFMT(mode), "something else")
