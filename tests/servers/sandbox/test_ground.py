import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.servers.sandbox import SandboxUnavailable
from agentrl.servers.sandbox.ground import Stage, ground, new_user, remove_tree

DEEP = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\nopen('f', 'w')"


def test_a_folder_deeper_than_python_can_remove_is_removed(tmp_path):
    folder = tmp_path / "box"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", DEEP], cwd=folder, check=True)
    remove_tree(folder)
    assert not folder.exists()
    remove_tree(folder)  # may be called again


def test_a_folder_that_is_closed_to_its_owner_is_removed(tmp_path):
    folder = tmp_path / "box"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    (tmp_path / "kept").write_text("x")
    (folder / "a").chmod(0)
    remove_tree(folder)
    assert not folder.exists()
    assert (tmp_path / "kept").exists()


def test_a_program_that_is_not_there_is_unavailable():
    with pytest.raises(SandboxUnavailable, match="no-such-program could not be started"):
        ground().start(["no-such-program"])


def test_every_sandbox_of_root_has_a_user_of_its_own():
    users = {new_user() for _ in range(20)}
    if os.geteuid() == 0:
        assert len(users) == 20
        assert min(users) >= 40_000
    else:
        assert users == {None}


def test_a_stage_finds_what_was_bound_and_what_lies_below():
    stage = Stage(3, {Path("/private/python"): "/mnt/1", Path("/tmp/x"): "/mnt/0"})
    assert stage.find(Path("/private/python")) == "/mnt/1"
    assert stage.find(Path("/tmp/x/box")) == "/mnt/0/box"
    assert stage.find(Path("/usr")) == "/usr"
    assert stage.enter(7) == ["nsenter", f"--mount=/proc/{os.getpid()}/fd/3", "--setuid=7", "--setgid=7", "--"]
    assert Stage(None, {}).enter(7)[0] == "setpriv"


def _in_child(parents, connection):
    connection.send((ground().scratch.path != parents, ground().start(["true"]).wait()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_ground_of_its_own():
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(ground().scratch.path, theirs))
    child.start()
    assert ours.recv() == (True, 0)
    child.join()
    assert ground().scratch.path.exists()
