import struct

import pytest

from agentrl.servers.sandbox.warm_seccomp import filter_program, refused_calls

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
MACHINES = {"x86_64": (0xC000003E, 56, 1), "aarch64": (0xC00000B7, 220, 64)}
"""Audit number, clone and write."""


def verdict(program, *, audit, number, argument=0):
    """Run a filter as the kernel would."""
    data = struct.pack("<IIQQ", number, audit, 0, argument)
    code = [struct.unpack("HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
    at = value = 0
    while True:
        kind, yes, no, constant = code[at]
        at += 1
        if kind == 0x06:
            return constant
        if kind == 0x20:
            (value,) = struct.unpack_from("<I", data, constant)
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[kind]
            at += yes if holds else no


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_get_their_verdicts(machine):
    audit, clone, write = MACHINES[machine]
    program = filter_program(machine)
    assert verdict(program, audit=audit, number=write) == ALLOW
    assert {verdict(program, audit=audit, number=number) for number in refused_calls(machine).values()} == {EPERM}
    assert verdict(program, audit=audit, number=clone, argument=17) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, audit=audit, number=clone, argument=flag | 17) == EPERM
    assert verdict(program, audit=audit, number=435) == ENOSYS
    assert verdict(program, audit=0x40000003, number=write) == KILL
    assert verdict(program, audit=audit, number=0x40000000 | write) == KILL


def test_other_machines_have_no_filter():
    with pytest.raises(KeyError):
        filter_program("riscv64")
