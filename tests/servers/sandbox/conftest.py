"""A sandbox a test, ways to attack it, and proof that none leaves anything behind."""

import os
import subprocess
import sys

import pytest
from sandbox_watch import LIMITS, inside, zombies

from agentrl.servers.sandbox import open_sandbox
from agentrl.servers.sandbox.client import RemoteSandbox
from agentrl.servers.sandbox.ground import ground

WAYS = ("cold", "python", "shell", "http")
PRELUDE = """
def attempt(name, call):
    try:
        print(name, "GOT", call())
    except BaseException as error:
        print(name, "refused:", type(error).__name__, getattr(error, "errno", None))
import os, sys, ctypes, socket, signal, time, resource
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    if getattr(libc, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "done"
"""


@pytest.fixture(params=["bubblewrap", "unsafe-subprocess"])
def either(request):
    """A sandbox of each kind."""
    with open_sandbox(request.param, limits=LIMITS) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox():
    """A sandbox under Bubblewrap; afterwards nothing of it is left."""
    with open_sandbox(limits=LIMITS) as opened:
        yield opened
    assert not inside(ground().scratch.path)
    assert not zombies(os.getpid())
    assert not list(ground().scratch.path.glob("box-*"))


@pytest.fixture(scope="session")
def server():
    """URL of a sandbox server in a process of its own."""
    words = [sys.executable, "-m", "agentrl", "serve-sandbox", "--port", "0", "--max-sandboxes", "4"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield line.split('"')[1]
        finally:
            process.terminate()
        assert process.wait(30) == 130


@pytest.fixture(params=WAYS)
def attack(request, sandbox):
    """Runs a Python program in a sandbox, one way or another; returns status and what it printed."""
    way = request.param
    if way == "cold":
        yield lambda code: _told(sandbox.run(["python", "-c", PRELUDE + code]))
    elif way == "http":
        with RemoteSandbox(request.getfixturevalue("server"), limits=LIMITS) as remote:
            yield lambda code: _told(remote.run(["python", "-c", PRELUDE + code]))
            assert remote.run(["echo", "well"]).stdout == b"well\n"
    else:
        session = sandbox.python() if way == "python" else sandbox.shell()
        wrapped = "{}" if way == "python" else "python - <<'END_OF_CODE'\n{}\nEND_OF_CODE"

        def run(code):
            turn = session.run(wrapped.format(PRELUDE + code) if way == "shell" else PRELUDE + code)
            return turn.status, turn.output.decode(errors="replace")

        yield run
        assert "well" in session.run("echo well" if way == "shell" else "print('well')").text  # the next call is unharmed
    with open_sandbox(limits=LIMITS) as other:
        assert other.run(["echo", "well"]).stdout == b"well\n"  # and so is the next sandbox


def _told(outcome):
    return outcome.status, (outcome.stdout + outcome.stderr).decode(errors="replace")
