from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from agentrl.errors import ConfigError
from agentrl.rollout.guardian import SIGNALLED
from agentrl.servers import vllm_server
from agentrl.servers.vllm_options import ServerOptions
from agentrl.servers.vllm_server import WRONG_CONFIG, VllmServer, check_port, ended

TREE = """
import os, signal, subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, start_new_session=True)
print(os.getpid(), grandchild.pid, file=open(sys.argv[1], "w"), flush=True)
stopped = int(os.environ["AGENTRL_STOP_FD"])
if sys.argv[2] == "stubborn":
    signal.pause()
os.read(stopped, 1)
print("in its own way", file=open(sys.argv[1] + ".end", "w"))
"""
"""Stands where vLLM does: a process with another below it in a session of its own."""


def start(folder, how):
    """A server and descriptors of its processes."""
    path = folder / "pids"
    os.mkfifo(path)
    server = VllmServer([sys.executable, "-c", TREE, str(path), how], os.environ)
    return server, [os.pidfd_open(int(pid)) for pid in path.read_text().split()]


def have_ended(descriptors):
    ended = [bool(select.select([one], [], [], 30)[0]) for one in descriptors]
    for one in descriptors:
        os.close(one)
    return all(ended)


def test_leaving_ends_the_whole_tree_the_polite_way(tmp_path):
    server, processes = start(tmp_path, "polite")
    with server:
        assert server.wait(0.0) is None
    assert have_ended(processes)
    assert (tmp_path / "pids.end").read_text() == "in its own way\n"
    server.end()


def test_a_tree_that_does_not_listen_is_killed(tmp_path):
    server, processes = start(tmp_path, "stubborn")
    server.end()
    assert have_ended(processes)


def test_a_server_that_is_killed_takes_its_tree_along(tmp_path):
    server, processes = start(tmp_path, "stubborn")
    with server:
        signal.pidfd_send_signal(processes[0], signal.SIGKILL)
        status = server.wait()
        assert status == SIGNALLED + signal.SIGKILL
        assert have_ended(processes)
    assert ended(status) == "vLLM was killed by SIGKILL; the reason is in its last lines above"


def test_a_killed_guardian_leaves_nothing(tmp_path):
    server, processes = start(tmp_path, "stubborn")
    with server:
        server.process.kill()
        assert server.wait() == -signal.SIGKILL
    assert have_ended(processes)


def test_the_status_of_a_server_is_told():
    assert ended(3) == "vLLM ended with status 3; the reason is in its last lines above"


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use; end what uses it"):
            check_port(ServerOptions(model="m", port=port))
    check_port(ServerOptions(model="m", port=port))


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        check_port(ServerOptions(model="m", host="192.0.2.1"))


def test_wrong_options_end_the_process_with_their_own_status():
    arguments = [sys.executable, "-m", "agentrl.servers.vllm_server", "--options"]
    done = subprocess.run([*arguments, '{"model": "m", "port": 0}'], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (WRONG_CONFIG, "agentrl: the server's options: port 0: it must be 1 to 65535\n")


def test_the_options_are_found_where_the_server_is():
    assert vllm_server.ServerOptions is ServerOptions
