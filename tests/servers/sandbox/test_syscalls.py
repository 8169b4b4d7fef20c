import errno
import struct

import pytest

from agentrl.servers.sandbox import SandboxUnavailable
from agentrl.servers.sandbox.syscalls import ARCHITECTURE, FALLOCATE, FAMILIES, REFUSED, SOCKET, X32, filter_program

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def judged(machine, number, first=0, architecture=None):
    """What the kernel would return for a call: the few instructions of a filter, run here."""
    data = struct.pack("=IIQQ", number, ARCHITECTURE[machine] if architecture is None else architecture, 0, first)
    lines = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    at = accumulator = 0
    while True:
        code, yes, no, value = lines[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x15:
            at += yes if accumulator == value else no
        elif code == 0x35:
            at += yes if accumulator >= value else no
        else:
            assert code == 0x06
            return value


@pytest.mark.parametrize("machine", REFUSED)
def test_dangerous_calls_are_refused_and_others_are_not(machine):
    for name, number in REFUSED[machine].items():
        assert judged(machine, number) == REFUSE | errno.EPERM, name
    assert judged(machine, FALLOCATE[machine]) == REFUSE | errno.EOPNOTSUPP
    special = {*REFUSED[machine].values(), FALLOCATE[machine], SOCKET[machine]}
    assert all(judged(machine, number) == ALLOW for number in range(460) if number not in special)


@pytest.mark.parametrize("machine", REFUSED)
def test_sockets_are_of_kinds_that_a_namespace_confines(machine):
    for family in range(50):
        expected = ALLOW if family in FAMILIES else REFUSE | errno.EAFNOSUPPORT
        assert judged(machine, SOCKET[machine], family) == expected, family


def test_calls_of_another_machine_do_not_slip_through():
    assert judged("x86_64", 1, architecture=0x40000003) == KILL  # a 32-bit program
    assert judged("x86_64", X32 | 1) == REFUSE | errno.ENOSYS


def test_an_unknown_machine_has_no_sandbox():
    with pytest.raises(SandboxUnavailable, match="this machine is riscv64"):
        filter_program("riscv64")
