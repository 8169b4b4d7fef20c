"""The file system that a warm worker sees, as a mount tree: the system read-only, a fresh /tmp, and nothing of the user's.

Runs inside the zygote: only the standard library. There is no /proc in it: what it would show, no test needs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentrl.servers.sandbox import warm_kernel as kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DEVICES = ("null", "zero", "full", "random", "urandom")
_NEW, _OLD = "/new", "/old"


def build_root(*, links: Mapping[str, str], binds: Mapping[str, str], hidden: Sequence[str], files: Mapping[str, str]) -> None:
    """Replace the caller's root by a new, read-only one; the caller must have the rights to mount, in a mount namespace of its own.

    Args:
        links: symbolic links: path -> where it points.
        binds: path inside -> file or folder of the old root; one below another comes after it.
        hidden: folders that appear empty, but for binds below them.
        files: path -> text of files that are made.
    """
    kernel.mount("", "/", flags=kernel.PRIVATE | kernel.RECURSIVE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NO_SUID | kernel.NO_DEV, "mode=755")
    os.mkdir("/tmp" + _OLD)
    os.mkdir("/tmp" + _NEW)
    kernel.pivot_root("/tmp", "/tmp" + _OLD)  # the old /tmp, which may hold this very Python, is in sight again under /old
    os.chdir("/")
    kernel.mount("tmpfs", _NEW, "tmpfs", kernel.NO_SUID | kernel.NO_DEV, "mode=755,size=1m")
    _furnish(links, files)
    late = {path: source for path, source in binds.items() if any(path.startswith(f"{folder}/") for folder in hidden)}
    bound = [_bind(source, path) for path, source in binds.items() if path not in late]
    for path in hidden:
        if os.path.isdir(_NEW + path):
            kernel.mount("tmpfs", _NEW + path, "tmpfs", kernel.NO_SUID | kernel.NO_DEV, "mode=755,size=1m")
    bound += [_bind(source, path) for path, source in late.items()]
    kernel.set_mount_flags(_NEW, kernel.READ_ONLY | kernel.NO_SUID, below=True)
    for target in bound:
        kernel.set_mount_flags(target, kernel.NO_DEV, below=True)
    os.chdir(_NEW)
    kernel.pivot_root(".", ".")
    kernel.detach(".")
    os.chdir("/")


def _bind(source: str, path: str) -> str:
    """Bind a file or folder of the old root into the new one, and return where."""
    target = _NEW + path
    if not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(_OLD + source):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    kernel.mount(_OLD + source, target, flags=kernel.BIND | kernel.RECURSIVE)
    return target


def _furnish(links: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Devices, /tmp, links, and files that programs expect."""
    for folder in ("/tmp", "/dev"):
        os.mkdir(_NEW + folder)
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"/dev/{name}")
    os.symlink("/tmp", f"{_NEW}/dev/shm")
    for path, target in links.items():
        os.symlink(target, _NEW + path)
    for path, text in files.items():
        os.makedirs(os.path.dirname(_NEW + path), exist_ok=True)
        with open(_NEW + path, "w", encoding="utf-8") as file:
            file.write(text)
