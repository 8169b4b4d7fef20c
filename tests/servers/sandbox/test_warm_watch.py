import json
import subprocess
import sys

import pytest

from agentrl.servers.sandbox import Limits, warm_watch
from agentrl.servers.sandbox.warm import Ended
from agentrl.servers.sandbox.warm_watch import Watched, as_outcome, spent

LIMITS = Limits(cpu_s=4, wall_s=8, memory_mib=100)


def ended(status="exited", code=0, cpu_s=0.1):
    return Ended(status=status, code=code, cpu_s=cpu_s, peak_mib=1)


@pytest.mark.parametrize(
    ("stop", "end", "outputs", "status", "reason"),
    [
        ("", ended(), (b"a", b""), "exited", ""),
        ("", ended("signalled", 6), (b"", b""), "signalled", "signal 6"),
        ("", ended("signalled", 9, cpu_s=3.9), (b"", b""), "cpu", "4 s of processor time"),
        ("timeout", ended("signalled", 9), (b"", b""), "timeout", "after 8 s"),
        ("memory", ended("signalled", 9), (b"", b""), "memory", "100 MiB"),
        ("", ended(), (b"x" * 2000, b""), "output", "1 KiB"),
    ],
)
def test_ends_are_named_with_their_limit(stop, end, outputs, status, reason):
    outcome = as_outcome(Watched(stop=stop, ended=end, outputs=outputs, seconds=1.0), LIMITS, 1024)
    assert outcome.status == status
    assert reason in outcome.reason
    assert len(outcome.stdout) <= 1024


def test_a_program_that_was_killed_early_was_killed_from_outside():
    assert not spent(ended("signalled", 9, cpu_s=0.1))
    assert spent(ended("signalled", 9, cpu_s=0.9))
    assert not spent(ended("signalled", 11, cpu_s=3))


def test_where_no_namespace_can_be_made_nothing_runs_and_nothing_is_graded():
    code = (
        "from agentrl.rewards.unit_tests import grade_code\n"
        "import json\ngrade = grade_code('def f(): return 1', {'tests': 'f() == 1', 'entry': 'f'})\n"
        "print(json.dumps([grade.verdict, grade.reason]))"
    )
    words = ["bwrap", "--unshare-user", "--uid", "1000", "--disable-userns", "--dev-bind", "/", "/", sys.executable, "-c", code]
    said = subprocess.run(words, capture_output=True, check=True, timeout=120).stdout
    verdict, reason = json.loads(said)
    assert verdict == "unscorable"
    assert "cannot start warm workers" in reason
    assert "user namespaces" in reason


def test_a_job_is_read_from_its_start_and_cannot_be_changed():
    import os

    fd = warm_watch.job_file(b"told" * 100_000)
    assert os.read(fd, 4) == b"told"
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    os.close(fd)
