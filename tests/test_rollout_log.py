from __future__ import annotations

import os
import resource

import pytest
from fakes import make_group

from agentrl.errors import CheckpointError
from agentrl.rollout_log import RolloutLog, cut_dispositions, next_lineage, read_dispositions, read_groups, replace_file


def test_groups_come_back_in_order_and_without_a_torn_line(tmp_path):
    log = RolloutLog(tmp_path, 0)
    for index in range(3):
        log.write(make_group(index, [1.0, 0.0]))
    log.close()
    path = tmp_path / "groups-000.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert [group.index for group in read_groups(tmp_path)] == [0, 1]
    again = RolloutLog(tmp_path, 1)
    again.write(make_group(2, [1.0, 1.0]))
    again.close()
    assert [group.index for group in read_groups(tmp_path)] == [0, 1, 2]
    assert [group.index for group in read_groups(tmp_path, skip={1})] == [0, 2]


def test_a_damaged_line_is_named(tmp_path):
    log = RolloutLog(tmp_path, 0)
    log.write(make_group(0, [1.0, 0.0]))
    log.dispose(0, ("trained", "trained"), step=1)
    log.close()
    for name, read in (("groups-000.jsonl", read_groups), ("dispositions.jsonl", read_dispositions)):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\0\0 garbage\n")
        with pytest.raises(CheckpointError, match=f"{name}, line 2 does not read back"):
            list(read(tmp_path))


def test_a_full_disk_takes_no_part_of_a_line(tmp_path):
    log = RolloutLog(tmp_path, 0)
    log.write(make_group(0, [1.0, 0.0]))
    size = (tmp_path / "groups-000.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(CheckpointError, match="free some space, then resume"):
            log.write(make_group(1, [1.0, 0.0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "groups-000.jsonl").stat().st_size == size
    log.write(make_group(2, [1.0, 0.0]))
    log.close()
    assert [group.index for group in read_groups(tmp_path)] == [0, 2]


def test_a_lineage_has_a_number_of_its_own_though_files_were_removed(tmp_path):
    assert next_lineage(tmp_path) == 0
    for lineage in range(3):
        RolloutLog(tmp_path, lineage).close()
    (tmp_path / "groups-000.jsonl").unlink()
    assert next_lineage(tmp_path) == 3


def test_a_cut_keeps_facts_and_forgets_later_steps(tmp_path):
    log = RolloutLog(tmp_path, 0)
    log.dispose(0, ("trained", "trained"), step=1)
    log.dispose(1, ("unscorable", "unscorable"))
    log.dispose(2, ("no_signal", "no_signal"), step=2)
    log.dispose(3, ("dropped",), at_end=True)
    log.close()
    assert sorted(cut_dispositions(tmp_path, 1)) == [0, 1]
    assert [record.index for record in read_dispositions(tmp_path)] == [0, 1]


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path):
    target = tmp_path / "state.json"
    replace_file(target, b"old")
    limited = tmp_path / "no-such-folder" / "state.json"
    with pytest.raises(CheckpointError, match="cannot write"):
        replace_file(limited, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_a_clear_error_for_a_rollout(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "groups-000.jsonl").symlink_to("/dev/full")
    log = RolloutLog(tmp_path, 0)
    with pytest.raises(CheckpointError, match="free some space"):
        log.write(make_group(0, [1.0]))
    log.close()
