"""A seccomp filter against namespaces in namespaces: with one of its own a program would hold every right over it.

Also against waiting on purpose: a program that could make itself the last in the queue for a processor would look like one on a machine
that is too busy, and that is nobody's fault.

`agentrl.servers.sandbox.syscalls` refuses the rest. Bubblewrap has a way of its own; this one also works where /proc/sys is read-only. Runs
inside the zygote: only the standard library. A refused call fails with EPERM, as if the program lacked a right.
"""

from __future__ import annotations

import platform
import struct

_NAMES = (
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsmount",
    "mount_setattr",
    "sched_setscheduler",
    "sched_setattr",
    "setpriority",
    "sched_setparam",
)
_MACHINES = {
    "x86_64": (0xC000003E, (272, 308, 165, 166, 155, 161, 428, 429, 430, 432, 442, 144, 314, 141, 142), 56),
    "aarch64": (0xC00000B7, (97, 268, 40, 39, 41, 51, 428, 429, 430, 432, 442, 119, 274, 140, 118), 220),
}
"""Audit number of the machine, the calls of `_NAMES` in its numbering (arch/x86/entry/syscalls/syscall_64.tbl,
include/uapi/asm-generic/unistd.h of Linux), and its clone."""

_CLONE3 = 435
_EPERM, _ENOSYS = 1, 38
_NEW_NAMESPACES = 0x7E020000
_X32 = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


def refused_calls(machine: str) -> dict[str, int]:
    """Number of each refused call by its name."""
    return dict(zip(_NAMES, _MACHINES[machine][1], strict=True))


def filter_program(machine: str | None = None) -> bytes:
    """The filter as the kernel takes it: instructions of eight bytes. Raises `KeyError` for an unknown machine type.

    Refused are the calls of `refused_calls`, `clone` with a new namespace, and `clone3`, whose flags a filter cannot see: the C library
    then takes `clone`.
    """
    audit, _, clone = _MACHINES[machine or platform.machine()]
    code = [
        _step(_LOAD, _MACHINE_AT),
        _step(_JUMP_EQUAL, audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_JUMP_ABOVE, _X32, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for number in sorted(refused_calls(machine or platform.machine()).values()):
        code += [_step(_JUMP_EQUAL, number, 0, 1), _step(_RETURN, _ERROR | _EPERM)]
    code += [_step(_JUMP_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _ERROR | _ENOSYS)]
    code += [
        _step(_JUMP_EQUAL, clone, 0, 3),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_JUMP_SET, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _ERROR | _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)
