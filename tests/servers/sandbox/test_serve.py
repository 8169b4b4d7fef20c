import re
import signal
import subprocess
import sys

import pytest
from sandbox_watch import inside, wait_until

from agentrl.errors import ConfigError
from agentrl.servers.sandbox import SandboxUnavailable, open_sandbox
from agentrl.servers.sandbox.client import RemoteSandbox
from agentrl.servers.sandbox.serve import Options, serve

SERVE = [sys.executable, "-m", "agentrl", "serve-sandbox", "--port", "0"]


def test_beyond_this_machine_there_must_be_a_key():
    with pytest.raises(ConfigError, match="set AGENTRL_SANDBOX_API_KEY to a secret"):
        serve(Options(host="0.0.0.0"), say=print)


def test_no_isolation_takes_a_key_on_this_machine_too():
    with pytest.raises(ConfigError, match="whoever reaches the server do what you may do"):
        serve(Options(kind="unsafe-subprocess"), say=print)


def test_a_kind_that_does_not_exist_is_not_served():
    with pytest.raises(ConfigError, match="bubblewrap, unsafe-subprocess"):
        serve(Options(kind="docker"), say=print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_that_ends_takes_every_sandbox_with_it(number):
    with subprocess.Popen(SERVE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = re.search(r'open_sandbox\("(.*)"\)', process.stdout.readline())[1]
        sandbox = open_sandbox(url)
        assert sandbox.shell().run("sleep 300 & setsid sleep 300 & echo begun").output == b"begun\n"
        scratch = next(path for path in sandbox_scratches(process.pid))
        assert len(inside(scratch)) >= 4
        process.send_signal(number)
        assert process.wait(20) == (-9 if number == signal.SIGKILL else 130)
        assert process.stderr.read() == ""
    assert wait_until(lambda: not inside(scratch))
    assert wait_until(lambda: not scratch.exists())
    with pytest.raises(SandboxUnavailable):
        RemoteSandbox(url, patience_s=0.3)
    sandbox.close()


def sandbox_scratches(owner):
    """Scratch folders whose removers are children of a process."""
    from pathlib import Path

    from agentrl.servers.sandbox import tree

    for pid in tree.members(owner):
        words = Path("/proc", str(pid), "cmdline").read_text().split("\0")
        if any(word.endswith("scratch.py") for word in words):
            yield Path(words[-2])
