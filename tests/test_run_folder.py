from __future__ import annotations

import contextlib
import os
import resource

import pytest

from agentrl import runfile
from agentrl.errors import CheckpointError, ConfigError
from agentrl.run_folder import RunFolder, RunState, new_folder, read_metrics


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("first\n")
    yield folder
    folder.close()


def write_checkpoint(folder, step, content=b"weights"):
    with folder.writing_checkpoint(RunState(step=step, lineage=0, places_trained=step, next_index=step)) as draft:
        (draft / "weights").write_bytes(content)


@contextlib.contextmanager
def no_file_larger_than(num_bytes):
    """What a full disk does, for everybody: a write past the limit fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_one_process_a_folder(folder):
    with pytest.raises(ConfigError, match="another process is using the run folder"):
        RunFolder(folder.path).create("second\n")
    with pytest.raises(ConfigError, match="another process is using the run folder"):
        RunFolder(folder.path).reopen()
    assert folder.config_file.read_text() == "first\n"


def test_a_run_that_ended_before_its_first_rollout_is_written_over(folder):
    folder.close()
    folder.create("second\n")
    assert folder.config_file.read_text() == "second\n"


@pytest.mark.parametrize("begin", ["rollouts", "steps", "checkpoint"])
def test_a_run_that_has_begun_is_not_written_over(folder, begin):
    if begin == "checkpoint":
        write_checkpoint(folder, 1)
    elif begin == "steps":
        folder.log_metrics({"step": 1})
    else:
        folder.rollouts.mkdir()
        (folder.rollouts / "groups-000.jsonl").write_text("{}\n")
    folder.close()
    with pytest.raises(ConfigError, match=r"already holds a run; give another --output, or .* --resume"):
        folder.create("second\n")
    assert folder.config_file.read_text() == "first\n"
    folder.reopen()


def test_a_folder_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"cannot make the run folder .*; give another --output"):
            RunFolder(path).create("")
    with pytest.raises(ConfigError, match="is no run folder"):
        RunFolder(tmp_path).reopen()


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"env": "nim?size=3"}, "nim-quickstart-"),
        ({"envs": [{"env": "nim"}, {"env": "countdown?a=1"}]}, "nim-countdown-quickstart-"),
        ({"dataset": "data/rows.jsonl?split=train[:10]", "objective": "sft"}, "rows-sft-quickstart-"),
        ({"dataset": "owner/name", "objective": "dpo"}, "name-dpo-quickstart-"),
        ({"datasets": [{"dataset": "a.jsonl"}, {"dataset": "b/"}], "objective": "sft"}, "a-b-sft-quickstart-"),
    ],
)
def test_a_folder_is_named_after_what_a_run_learns_from(tmp_path, options, start):
    with contextlib.chdir(tmp_path):
        assert new_folder(runfile.from_mapping({"model": "quickstart", **options})).name.startswith(start)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    config = runfile.from_mapping({"model": "quickstart", "env": "e.py:E?a=1"})
    with contextlib.chdir(tmp_path):  # the default is relative
        made = {new_folder(config) for _ in range(3)}
        assert len(made) == 3
        assert all(path.is_dir() and path.name.startswith("e.py-E-quickstart-") for path in made)


def test_a_torn_or_damaged_line_of_metrics_is_forgotten(folder):
    for step in (1, 2, 3):
        folder.log_metrics({"step": step})
    with folder.metrics_file.open("ab") as file:
        file.write(b"\0\0\n[1]\n" + b'{"step": 4, "rew')
    assert [one["step"] for one in read_metrics(folder.path)] == [1, 2, 3]
    folder.cut_metrics(2)
    assert folder.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_full_disk_leaves_earlier_checkpoints_and_no_draft(folder):
    write_checkpoint(folder, 1)
    said = r"step 2 .*free some space and run .*it goes on from .*step-000001"
    with no_file_larger_than(1000), pytest.raises(CheckpointError, match=said):
        write_checkpoint(folder, 2, b"x" * 2000)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000001"]


def test_a_full_disk_while_the_model_is_written_leaves_the_model_that_was_there(folder):
    folder.model.mkdir()
    (folder.model / "weights").write_text("old")
    with no_file_larger_than(1000), pytest.raises(CheckpointError, match="cannot write the final model"), folder.writing_model() as draft:
        (draft / "weights").write_bytes(b"x" * 2000)
    assert (folder.model / "weights").read_text() == "old"
    assert sorted(path.name for path in folder.path.iterdir() if "model" in path.name) == ["model"]


def test_a_full_disk_for_metrics_is_an_error_with_the_cure(folder):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    folder.metrics_file.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left on device; free some space, then .*--resume"):
        folder.log_metrics({"step": 1})


def test_an_interrupted_checkpoint_is_no_checkpoint(folder):
    with pytest.raises(KeyboardInterrupt), folder.writing_checkpoint(RunState(step=1, lineage=0, places_trained=1, next_index=1)):
        raise KeyboardInterrupt
    assert folder.latest_checkpoint() is None
    assert list(folder.checkpoints.iterdir()) == []


def test_incomplete_checkpoints_are_not_counted_among_those_kept(folder):
    for step in (2, 4, 6, 8):
        write_checkpoint(folder, step)
    (folder.checkpoints / "step-000006" / "run.json").unlink()
    assert folder.latest_checkpoint().name == "step-000008"
    assert folder.latest_checkpoint(before=folder.latest_checkpoint()).name == "step-000004"
    folder.prune_checkpoints(2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000004", "step-000008"]


def test_a_damaged_run_json_is_named(folder):
    write_checkpoint(folder, 1)
    (folder.latest_checkpoint() / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read back"):
        folder.read_state(folder.latest_checkpoint())
