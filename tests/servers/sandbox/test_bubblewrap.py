"""What a program under Bubblewrap cannot do is in `test_escapes.py`."""

import os
import threading

import pytest
from sandbox_watch import LIMITS

from agentrl.servers.sandbox import Limits, SandboxUnavailable, open_sandbox
from agentrl.servers.sandbox.bubblewrap import _explain, bwrap


def test_a_machine_without_bubblewrap_says_what_to_install(tmp_path):
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        bwrap(str(tmp_path))


@pytest.mark.parametrize(
    "said",
    [
        "bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user namespaces.",
        "bwrap: setting up uid map: Permission denied",
        "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
        "bwrap: Creating new namespace failed: Operation not permitted",
    ],
)
def test_forbidden_namespaces_are_explained(said):
    text = _explain(said)
    assert said in text
    assert "sysctl kernel.unprivileged_userns_clone=1" in text
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in text


def test_another_failure_keeps_its_own_words():
    assert _explain("bwrap: out of luck") == "bubblewrap could not make a sandbox: bwrap: out of luck"
    assert "CAP_SYS_ADMIN" in _explain("bwrap: Can't find source path /x: Permission denied")
    assert "systempaths=unconfined" in _explain("bwrap: Can't mount proc on /newroot/proc: Operation not permitted")
    assert "without a word" in _explain("")


def test_a_sandbox_that_cannot_be_made_is_unavailable_and_leaves_nothing():
    before = len(os.listdir("/proc/self/fd"))
    sandbox = open_sandbox(limits=Limits())
    sandbox._path.rmdir()
    for _ in range(3):
        with pytest.raises(SandboxUnavailable, match="bubblewrap could not make a sandbox"):
            sandbox.run(["true"])
    sandbox.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # the ground's own, where this is the first test


def test_descriptors_are_given_back():
    with open_sandbox(limits=LIMITS) as sandbox:
        sandbox.run(["true"])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            sandbox.run(["true"])
            session = sandbox.python()
            session.run("1")
            session.close()
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_program_sees_itself_as_an_ordinary_user_in_its_folder(sandbox):
    outcome = sandbox.run(["sh", "-c", "id -un; pwd; echo $HOME; hostname; cat /etc/hosts; echo x > /dev/stdout; python3 -V"])
    lines = outcome.stdout.decode().split("\n")
    assert lines[:4] == ["sandbox", "/sandbox", "/sandbox", "sandbox"]
    assert "127.0.0.1 localhost" in lines
    assert "x" in lines


def test_many_threads_run_programs_at_once():
    outcomes = []
    with open_sandbox(limits=LIMITS) as sandbox:
        threads = [
            threading.Thread(target=lambda n=n: outcomes.append(sandbox.run(["sh", "-c", f"sleep 0.1; echo {n}"]).stdout)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == [f"{n}\n".encode() for n in range(8)]
