"""A seccomp filter for programs in a sandbox: what namespaces do not isolate, and what only an attack on the kernel needs.

Sockets of kinds that no network namespace confines (vsock reaches the machine that hosts this one), memory that no limit of a process
counts (System V and memfd), space on a disk that no count of written bytes shows (fallocate), the kernel's keyrings and log, and the
large young interfaces (io_uring, which can also open sockets behind a filter's back, bpf, userfaultfd, performance events).
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

from agentrl.servers.sandbox.limits import SandboxUnavailable

REFUSED = {
    "x86_64": {
        "shmget": 29, "semget": 64, "msgget": 68, "ptrace": 101, "syslog": 103, "acct": 163, "add_key": 248, "request_key": 249,
        "keyctl": 250, "perf_event_open": 298, "fanotify_init": 300, "open_by_handle_at": 304, "memfd_create": 319, "bpf": 321,
        "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "memfd_secret": 447,
    },
    "aarch64": {
        "shmget": 194, "semget": 190, "msgget": 186, "ptrace": 117, "syslog": 116, "acct": 89, "add_key": 217, "request_key": 218,
        "keyctl": 219, "perf_event_open": 241, "fanotify_init": 262, "open_by_handle_at": 265, "memfd_create": 279, "bpf": 280,
        "userfaultfd": 282, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "memfd_secret": 447,
    },
}  # fmt: skip
"""System calls by machine, as its kernel numbers them (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h)."""
FALLOCATE = {"x86_64": 285, "aarch64": 47}
"""Programs go on without it where it is not supported."""
SOCKET = {"x86_64": 41, "aarch64": 198}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK: confined to the network namespace, or to the files that one sees."""
X32 = 0x40000000
"""Bit of a number that means x86's third set of calls, which nobody uses."""

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's struct seccomp_data."""


@functools.cache
def filter_program(machine: str = "") -> bytes:
    """The filter as Bubblewrap's --seccomp reads it: struct sock_filter after struct sock_filter. Raises `SandboxUnavailable`."""
    machine = machine or platform.machine()
    if machine not in REFUSED:
        raise SandboxUnavailable(
            f"the sandbox's filter of system calls is written for {' and '.join(REFUSED)}, and this machine is {machine}; "
            "open the sandbox over HTTP on one of those"
        )
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, ARCHITECTURE[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        lines += [(_IF_AT_LEAST, 0, 1, X32), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    for number in REFUSED[machine].values():
        lines += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE | errno.EPERM)]
    lines += [(_IF_EQUAL, 0, 1, FALLOCATE[machine]), (_RETURN, 0, 0, _REFUSE | errno.EOPNOTSUPP)]
    lines += [(_IF_EQUAL, 1, 0, SOCKET[machine]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in FAMILIES:
        lines += [(_IF_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_RETURN, 0, 0, _REFUSE | errno.EAFNOSUPPORT)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
