"""The few system calls that make a sandbox out of the calling process. Runs inside the zygote: only the standard library."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SUID, NO_DEV = 0x1, 0x2, 0x4
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000
INSIDE_UID = 1000
"""Who a program is inside its user namespace; outside it is the unprivileged user that started the zygote."""

_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _AT_EMPTY_PATH = -100, 0x8000, 0x1000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 22, 38, 47
_CAP_VERSION = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CLOSE_RANGE, _MOUNT_SETATTR = 436, 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.syscall.restype = ctypes.c_long


class KernelRefused(OSError):
    """A system call that the sandbox needs did not succeed; the message names it."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise KernelRefused(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of the parent for fresh ones. A new pid namespace is that of the next child, not of the caller."""
    _check(_libc.unshare(flags), f"unshare(0x{flags:x})")


def set_namespace(fd: int, flag: int) -> None:
    """Enter the namespace that a descriptor of `/proc/PID/ns/...` names."""
    _check(_libc.setns(fd, flag), f"setns(0x{flag:x})")


def map_user(proc: int, uid: int, gid: int) -> None:
    """Make the caller `INSIDE_UID` in the user namespace that it has just made.

    Args:
        proc: descriptor of a `/proc` that shows the caller.
        uid: of the caller before.
        gid: of the caller before.
    """
    for name, text in (("setgroups", "deny"), ("uid_map", f"{INSIDE_UID} {uid} 1"), ("gid_map", f"{INSIDE_UID} {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise KernelRefused(error.errno, f"writing /proc/self/{name}: {error.strerror}") from None
        finally:
            os.close(fd)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system, or bind a path."""
    encoded = [os.fsencode(text) if text else None for text in (source, target, kind, options)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), f"mount({source or kind} at {target})")


def set_mount_flags(target: str, flags: int, *, below: bool) -> None:
    """Add `READ_ONLY`, `NO_SUID` and `NO_DEV` to a mount, and to all mounts below it."""
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", flags, 0, 0, 0))
    how = _AT_RECURSIVE if below else 0
    result = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, ctypes.c_char_p(os.fsencode(target)), how, attributes, ctypes.c_size_t(32))
    _check(result, f"mount_setattr({target}), which Linux has since 5.12")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root; the old one appears at `old`, below it."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise KernelRefused(0, f"no sandbox for the machine type {platform.machine()}; there is one for {', '.join(_PIVOT_ROOT)}")
    _check(_libc.syscall(number, ctypes.c_char_p(os.fsencode(new)), ctypes.c_char_p(os.fsencode(old))), f"pivot_root({new})")


def detach(target: str) -> None:
    """Take a mount and all below it out of sight."""
    _check(_libc.umount2(os.fsencode(target), _DETACH), f"umount2({target})")


def become(uid: int, gid: int) -> None:
    """Leave root for an unprivileged user, for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # dropping privileges hides a process from itself, /proc/self/uid_map included
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def close_from(first: int) -> None:
    """Close every descriptor from a number on."""
    _check(_libc.syscall(_CLOSE_RANGE, first, ctypes.c_uint(2**32 - 1), 0), "close_range")


def die_with_parent() -> None:
    """Be killed when the parent dies."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def drop_capabilities() -> None:
    """Give up every capability, and with `no_new_privs` the way to any.

    That also stands for the bounding set: emptying it takes a call for each capability, which together cost more than all else here.
    """
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    _libc.prctl(_PR_CAP_AMBIENT, 4, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAP_VERSION, 0))
    nothing = ctypes.create_string_buffer(struct.pack("6I", 0, 0, 0, 0, 0, 0))
    _check(_libc.capset(header, nothing), "capset")


def filter_system_calls(program: bytes) -> None:
    """Install a seccomp filter, which binds all that the caller starts as well; it must have given up its rights, or have them all."""
    code = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(described), 0, 0), "prctl(PR_SET_SECCOMP)")


def limit_resources(limits: Mapping[str, float]) -> None:
    """Set what the kernel counts a process for: its CPU time, addresses, files, descriptors, and the processes of its user namespace."""
    for kind, value in (
        (resource.RLIMIT_CORE, 1),  # 0 would still call a handler of crashes outside; 1 is the word for nothing at all
        (resource.RLIMIT_CPU, _whole_cpu_s(limits)),
        (resource.RLIMIT_AS, int(limits["memory_mib"] * 2**20)),
        (resource.RLIMIT_FSIZE, int(limits["file_mib"] * 2**20)),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, int(limits["processes"])),
        (resource.RLIMIT_NOFILE, int(limits["open_files"])),
    ):
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


def has_lowered_cpu_limit(pid: int, limits: Mapping[str, float]) -> bool:
    """Whether a process, running or not yet reaped, has less processor time than it was given: then it chose to be killed early."""
    try:
        least, own = resource.prlimit(pid, resource.RLIMIT_CPU)[1], resource.getrlimit(resource.RLIMIT_CPU)[1]
    except OSError:
        return False
    given = _whole_cpu_s(limits)
    return least != resource.RLIM_INFINITY and least < (given if own == resource.RLIM_INFINITY else min(given, own))


def _whole_cpu_s(limits: Mapping[str, float]) -> int:
    return max(1, int(-(-limits["cpu_s"] // 1)))
