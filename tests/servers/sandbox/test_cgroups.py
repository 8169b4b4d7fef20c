import os
from pathlib import Path

import pytest

from agentrl.servers.sandbox import cgroups
from agentrl.servers.sandbox.cgroups import Cage, make_cage, writable_parents


@pytest.mark.parametrize(
    ("name", "text", "killed"),
    [
        ("memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 0\n", 1),
        ("memory.events", "oom 2\noom_kill 0\n", 0),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
        ("memory.other", "oom_kill 3\n", 0),
    ],
)
def test_a_kill_for_memory_is_read_from_either_version(tmp_path, name, text, killed):
    (tmp_path / name).write_text(text)
    assert Cage({"memory": tmp_path, "pids": tmp_path}).memory_kills() == killed


def test_groups_of_makers_that_are_gone_are_swept(tmp_path):
    names = [f"agentrl-{2**22 - 1}-ab", f"agentrl-{os.getpid()}-ab", "agentrl-x", "other"]
    for name in names:
        (tmp_path / name).mkdir()
    cgroups._sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_group_has_its_limits_where_one_can_be_made():
    cage = make_cage(memory_bytes=1 << 26, tasks=7)
    if not writable_parents():
        assert cage is None
        return
    folders = set(cage.folders.values())
    assert (cage.folders["pids"] / "pids.max").read_text() == "7\n"
    texts = [path.read_text() for name in ("memory.max", "memory.limit_in_bytes") if (path := cage.folders["memory"] / name).exists()]
    assert texts == [f"{1 << 26}\n"]
    cage.close()
    assert not any(Path(folder).exists() for folder in folders)
