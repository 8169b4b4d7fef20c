import os

import pytest

from agentrl.servers.sandbox import Limits
from agentrl.servers.sandbox.running import Pipes, readable, rlimits


@pytest.mark.parametrize(
    ("limits", "cpu_s", "writes", "words"),
    [
        (Limits(cpu_s=0.2), None, True, ["--cpu=1:2", "--fsize=67108864"]),
        (Limits(cpu_s=3.4), None, True, ["--cpu=3:4"]),
        (Limits(), 50, True, ["--cpu=50:51"]),
        (Limits(), None, False, ["--fsize=0"]),
        (Limits(memory_mib=1, open_files=7), None, True, ["--data=1048576", "--nofile=7", "--core=1", f"--as={64 << 30}"]),
    ],
)
def test_limits_become_words(limits, cpu_s, writes, words):
    assert set(words) <= set(rlimits(limits, cpu_s, writes))


def test_descriptors_of_large_numbers_can_be_waited_for():
    read, write = os.pipe()
    high = os.dup2(read, 900 if os.sysconf("SC_OPEN_MAX") < 2000 else 1500)
    assert not readable(high, 0.01)
    assert not readable(high, -1)
    os.write(write, b"x")
    assert readable(high, 5)
    for fd in (read, write, high):
        os.close(fd)


def test_a_program_cannot_make_this_process_wait_for_a_pipe():
    pipes = Pipes.make(None)
    assert not any(os.get_blocking(fd) for fd in pipes.ours)
    assert all(os.get_blocking(fd) for fd in pipes.theirs)
    pipes.close((*pipes.ours, *pipes.theirs))
