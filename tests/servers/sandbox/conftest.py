"""A sandbox a test, and proof that none leaves anything behind."""

import os
import subprocess
import sys

import pytest
from sandbox_watch import LIMITS, inside, zombies

from agentrl.servers.sandbox import open_sandbox
from agentrl.servers.sandbox.ground import ground


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
