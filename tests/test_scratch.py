from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agentrl.scratch import ScratchFolder

HOLDER = """
import sys
from agentrl.scratch import ScratchFolder

folder = ScratchFolder("agentrl-kept-")
(folder.path / "sub").mkdir()
(folder.path / "sub" / "file").write_text("x")
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_it_is_private_and_removed_with_what_is_in_it():
    with ScratchFolder("agentrl-kept-") as path:
        assert path.parent == Path(tempfile.gettempdir())
        assert path.name.startswith("agentrl-kept-")
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "sub").mkdir()
        (path / "sub" / "file").write_text("x")
    assert not path.exists()


def test_closing_again_does_nothing_and_a_killed_remover_is_replaced():
    folder = ScratchFolder()
    folder._remover.kill()
    folder.close()
    folder.close()
    assert not folder.path.exists()


@pytest.fixture
def short():
    """A folder whose path is short enough to have scratch folders in it."""
    with ScratchFolder("t-") as path:
        yield path


def test_it_does_not_outlive_a_killed_process(short):
    ours, theirs = os.pipe()  # whoever removes the folder inherits the errors' end of it, so that its end can be waited for
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TMPDIR": str(short)}
    ) as process:
        os.close(theirs)
        path = Path(process.stdout.readline().decode().strip())
        assert [path] == list(short.iterdir())
        process.kill()
    with os.fdopen(ours, "rb") as errors:
        assert errors.read() == b""  # until both have ended
    assert list(short.iterdir()) == []


def test_a_long_temporary_folder_is_avoided(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(long)
    try:
        with ScratchFolder() as path:
            assert path.parent == Path("/tmp")
            assert list(long.iterdir()) == []
    finally:
        tempfile.tempdir = before


def test_a_folder_that_cannot_be_made_is_an_error(short):
    before, tempfile.tempdir = tempfile.tempdir, str(short / "nothing")
    try:
        with pytest.raises(FileNotFoundError):
            ScratchFolder()
    finally:
        tempfile.tempdir = before
