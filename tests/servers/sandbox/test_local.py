"""One interface, both kinds on this machine."""

import signal

import pytest
from sandbox_watch import limits

from agentrl.servers.sandbox import SandboxFileError, SandboxUnavailable


def test_a_program_gets_its_input_and_gives_output_and_status(either):
    outcome = either.run(["sh", "-c", "cat; echo more >&2; exit 3"], stdin=b"\x00\xff" * 10_000)
    assert (outcome.status, outcome.code) == ("exited", 3)
    assert outcome.stdout == b"\x00\xff" * 10_000
    assert outcome.stderr == b"more\n"
    assert outcome.reason == ""
    assert not outcome.ok


def test_input_and_output_larger_than_a_pipe_do_not_block_each_other(either):
    data = bytes(range(256)) * 4096
    outcome = either.run(["sh", "-c", "cat | cat"], stdin=data, limits=limits(output_kib=1024))
    assert outcome.ok
    assert outcome.stdout == data


def test_exactly_as_much_output_as_is_allowed_is_allowed(either):
    kept = either.run(["head", "-c", str(64 << 10), "/dev/zero"])
    assert kept.ok
    assert len(kept.stdout) == 64 << 10
    more = either.run(["head", "-c", str((64 << 10) + 1), "/dev/zero"])
    assert (more.status, more.code, len(more.stdout)) == ("output", None, 64 << 10)
    assert "64 KiB" in more.reason


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_signal_is_told_by_number(either, number):
    outcome = either.run(["sh", "-c", f"kill -{int(number)} $$"])
    assert (outcome.status, outcome.code) == ("signalled", number)
    assert number.name in outcome.reason


def test_a_program_that_is_not_there_exits_as_in_a_shell(either):
    outcome = either.run(["no-such-program"])
    assert outcome.code == 127
    assert b"not found" in outcome.stderr


def test_the_clock_is_the_parents(either):
    for wall_s in (0.3, 3.0, 30.0):
        outcome = either.run(["sh", "-c", "trap '' TERM INT HUP; echo begun; sleep 600"], limits=limits(wall_s=wall_s))
        assert (outcome.status, outcome.code) == ("timeout", None)
        assert wall_s <= outcome.seconds < wall_s + 2.7
        if outcome.stdout:  # on a busy machine a short clock runs out before the program has begun
            break
    assert outcome.stdout == b"begun\n"


def test_cpu_time_is_limited(either):
    outcome = either.run(["sh", "-c", "while :; do :; done"], limits=limits(cpu_s=0.5))
    assert outcome.status == "cpu"
    assert "0.5 s of CPU" in outcome.reason


def test_memory_of_one_process_is_limited(either):
    outcome = either.run(["python", "-c", "x = bytearray(2 ** 29)"])
    assert outcome.status in ("exited", "memory")
    assert not outcome.ok


def test_a_large_file_is_limited(either):
    outcome = either.run(["sh", "-c", "exec head -c 100000000 /dev/zero > big"])
    assert outcome.status == "output"
    assert "16 MiB" in outcome.reason


def test_files_are_shared_with_programs(either):
    either.write("a/in.txt", b"hello")
    assert either.run(["sh", "-c", "cat a/in.txt; echo x > a/out.txt"]).stdout == b"hello"
    assert either.read("a/out.txt") == b"x\n"
    assert either.listing() == ["a/", "a/in.txt", "a/out.txt"]
    assert either.run(["sh", "-c", "echo y >> a/in.txt && rm a/out.txt"]).ok  # what was written from outside is the program's own
    with pytest.raises(SandboxFileError):
        either.read("a/out.txt")


@pytest.mark.parametrize("command", ["echo x", [], [1], ["a\0b"], None])
def test_a_command_that_is_none_is_refused(either, command):
    with pytest.raises(ValueError, match="list of words"):
        either.run(command)


def test_a_closed_sandbox_does_nothing(either):
    session = either.python()
    session.run("1")
    either.close()
    either.close()
    for call in (lambda: either.run(["true"]), lambda: either.read("x"), lambda: either.write("x", b""), either.listing, either.shell):
        with pytest.raises(SandboxUnavailable, match="was closed"):
            call()
    with pytest.raises(SandboxUnavailable, match="was closed"):
        session.run("1")
