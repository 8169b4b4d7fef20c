import os
import signal
import subprocess

from sandbox_watch import wait_until

from agentrl.servers.sandbox import tree

FAMILY = "sleep 60 & (sleep 60 & sleep 60) & echo ready; while :; do :; done"


def test_a_tree_is_found_measured_halted_and_resumed():
    with subprocess.Popen(["bash", "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True) as shell:
        try:
            assert shell.stdout.readline() == b"ready\n"
            assert wait_until(lambda: len(tree.members(shell.pid)) == 5)
            assert tree.members(shell.pid)[0] == shell.pid
            assert len(tree.children(shell.pid)) == 2
            assert wait_until(lambda: tree.use(shell.pid).cpu_s > 0.05)
            assert tree.use(shell.pid).tasks == 5
            assert tree.use(shell.pid).memory_bytes >= tree.fair_memory_bytes(shell.pid) > 0
            assert tree.halt(shell.pid)
            used = tree.use(shell.pid).cpu_s
            tree.resume(shell.pid)
            assert wait_until(lambda: tree.use(shell.pid).cpu_s > used)
            tree.signal_some(shell.pid, tree.members(shell.pid)[1:], signal.SIGKILL)
            assert wait_until(lambda: len(tree.members(shell.pid)) < 5)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert tree.members(shell.pid) == [shell.pid]
    assert tree.use(shell.pid).tasks == 0
    assert tree.fair_memory_bytes(shell.pid) is None


def test_a_process_outside_of_the_tree_gets_no_signal():
    with subprocess.Popen(["sleep", "60"]) as inside, subprocess.Popen(["sleep", "60"]) as outside:
        tree.signal_some(inside.pid, [outside.pid, inside.pid, 2**22 - 1], signal.SIGKILL)
        assert inside.wait(5) == -signal.SIGKILL
        assert outside.poll() is None
        outside.kill()


def test_a_name_with_brackets_hides_nothing(tmp_path):
    script = tmp_path / ") R 1 (x"
    script.write_text("#!/bin/sh\nread -r line\n")
    script.chmod(0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE) as child:
        assert wait_until(lambda: tree.use(os.getpid()).tasks >= 2)
        assert child.pid in tree.members(os.getpid())
        assert tree.use(child.pid).tasks == 1
        child.stdin.close()
