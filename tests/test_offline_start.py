"""What an offline run starts from: in a folder where one has failed, after a checkpoint under other settings, and on few rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from example_fakes import Rows, supervised
from test_run import Silent

from agentrl import objectives, runfile
from agentrl.errors import CheckpointError, ConfigError
from agentrl.offline_batches import Begun, ShuffledBatches, planned_steps
from agentrl.offline_start import idle_columns
from agentrl.run import train
from agentrl.run_folder import RunFolder, RunState, read_metrics

ROWS = 10
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Told(Silent):
    """Keeps what it is told; at a step it ends the run as a kill does."""

    def __init__(self, killed_at=None):
        super().__init__()
        self.said, self._killed_at = [], killed_at

    def message(self, text):
        self.said.append(text)

    def step(self, metrics):
        if metrics["step"] == self._killed_at:
            raise Killed


class Killed(Exception):
    pass


def written(path, rows=ROWS, *, bad=()):
    content = [{"prompt": f"{n}+1=", "completion": "" if n in bad else str(n + 1)} for n in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def run(tmp_path, *, resume=False, killed_at=None, dataset=None, objective="sft", **changes):
    """Train in `tmp_path/run`, or go on there as `agentrl train --resume` does; returns what was said."""
    output = tmp_path / "run"
    if resume:
        sets = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in changes.items()]
        config = runfile.load(output / "config.yaml", sets, {"output": output})
    else:
        given = {
            "model": "quickstart",
            "objective": objective,
            "dataset": dataset or written(tmp_path / "rows.jsonl"),
            "output": str(output),
        }
        config = runfile.from_mapping(
            given | {"batch_size": 4, "checkpoint": {"every": 2}, "learner": {"device": "cpu", "threads": 1}} | changes
        )
    told = Told(killed_at)
    train(config, resume=output if resume else None, progress=told)
    return told.said


def epochs(tmp_path):
    return [metrics["epoch"] for metrics in read_metrics(tmp_path / "run")]


def test_a_start_that_failed_leaves_its_folder_to_the_next(tmp_path):
    with pytest.raises(ConfigError, match=r"line 9: `completion` must be text that is not empty"):
        run(tmp_path, dataset=written(tmp_path / "bad.jsonl", bad=[8]))
    run(tmp_path)
    assert epochs(tmp_path) == [0.4, 0.8, 1.0]


def test_steps_without_a_checkpoint_are_not_mixed_with_those_of_another_run(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_at=1)
    with pytest.raises(ConfigError, match=r"already holds a run; .*--resume"):
        run(tmp_path)
    run(tmp_path, resume=True)
    assert epochs(tmp_path) == [0.4, 0.8, 1.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"seed": 3},
            r"`seed` was 0 and is 3: that changes the order .*step-000002.* What may change on a resume: steps, epochs, batch_size",
        ),
        ({"data__shuffle": False}, r"`data.shuffle` was true and is false"),
    ],
)
def test_a_resume_in_another_order_is_refused(changes, said, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_at=3)
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, resume=True, **changes)
    run(tmp_path, resume=True)
    assert epochs(tmp_path) == [0.4, 0.8, 1.0]


def test_the_seed_of_rows_as_they_stand_may_change(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_at=3, data={"shuffle": False})
    run(tmp_path, resume=True, seed=3)
    assert epochs(tmp_path) == [0.4, 0.8, 1.0]


def test_a_resume_on_other_rows_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_at=3)
    written(tmp_path / "rows.jsonl", ROWS + 1)
    with pytest.raises(ConfigError, match="the rows that this run trains on are not those of its checkpoint"):
        run(tmp_path, resume=True)


def test_a_resume_with_more_rows_a_step_goes_on_behind_those_that_were_trained(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_at=3)
    run(tmp_path, resume=True, batch_size=1)
    assert epochs(tmp_path) == [0.4, 0.8, 0.9, 1.0]


def test_a_run_that_is_done_goes_on_with_more_epochs(tmp_path):
    """Behind a last step that was smaller; and what is said of a run that is done is what helps."""
    run(tmp_path)
    assert "the run has done its 3 steps already; for more: --set epochs=N" in run(tmp_path, resume=True)
    run(tmp_path, resume=True, epochs=2)
    assert epochs(tmp_path) == [0.4, 0.8, 1.0, 1.4, 1.8, 2.0]


def test_rows_behind_a_smaller_step_are_each_trained_once():
    rows = Rows(supervised(10))
    first = ShuffledBatches(rows, batch_size=4, seed=0, last=10)
    assert first.place_of(3) == {"taken": 10}
    on = ShuffledBatches(rows, batch_size=3, seed=0, last=20, begun=Begun(3, 10))
    trained = Counter(one.where for step in range(3, 7) for one in on.take(step))
    assert trained == Counter(one.where for one in rows)
    assert [on.epoch(step) for step in (3, 7)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "begun", "expected"),
    [
        ({"epochs": 2}, Begun(3, 10), (6, 20)),
        ({"epochs": 2, "batch_size": 100}, Begun(), (2, 20)),  # an epoch is a step
        ({"epochs": 1}, Begun(3, 10), (3, 10)),
        ({"epochs": 1}, Begun(6, 20), (6, 10)),  # fewer epochs than were trained
        ({"steps": 9}, Begun(3, 10), (9, None)),
    ],
)
def test_the_steps_that_are_left_follow_from_what_was_trained(changes, begun, expected):
    config = runfile.from_mapping({"model": "m", "objective": "sft", "dataset": "d", "batch_size": 4} | changes)
    assert planned_steps(config, 10, begun) == expected


def test_a_step_never_holds_a_row_twice_where_there_are_fewer_than_it_asks_for(tmp_path):
    said = run(tmp_path, batch_size=25, steps=2)
    assert "`batch_size` is 25, and the dataset has 10 examples: each step trains all of them, once" in said
    assert epochs(tmp_path) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "columns", "idle"),
    [
        ("sft", ["weight"], ["weight"]),
        ("bco", ["weight"], []),
        ("reward_model", ["weight", "margin"], ["weight"]),
        ("dpo", ["margin"], ["margin"]),
        ("sft", [], []),
    ],
)
def test_a_column_of_numbers_that_no_loss_reads_is_idle(name, columns, idle):
    assert idle_columns(objectives.get(name), iter(columns)) == idle


def test_a_run_says_which_columns_change_nothing(tmp_path):
    path = tmp_path / "weighed.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1), "weight": 0.5}) + "\n" for n in range(4)))
    said = run(tmp_path, dataset=str(path), steps=1)
    assert "the rows have a column `weight`, which objective 'sft' does not read: it changes nothing" in said


def test_one_row_is_too_few_for_an_objective_that_mixes_them(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "1+1=", "completion": "2", "label": True}) + "\n")
    with pytest.raises(ConfigError, match=r"the dataset has 1 example: objective 'kto' reads each prompt with another row's completion"):
        run(tmp_path, dataset=str(path), objective="kto")


def test_a_run_that_is_interrupted_before_its_first_step_can_be_started_again(tmp_path):
    class Interrupting(Told):
        """Ends the run as Ctrl-C does, when the first step is waited for."""

        def waiting(self, what):
            if what == "the model":
                raise KeyboardInterrupt

    values = {"model": "quickstart", "objective": "sft", "dataset": written(tmp_path / "rows.jsonl"), "output": str(tmp_path / "run")}
    assert train(runfile.from_mapping(values), progress=Interrupting()).interrupted
    assert not RunFolder(tmp_path / "run").has_begun()


@pytest.mark.parametrize("online", [False, True])
def test_a_full_disk_speaks_of_rollouts_where_there_are_any(online, tmp_path):
    folder = RunFolder(Path(tmp_path))
    if online:
        folder.rollouts.mkdir()
    state = RunState(step=1, lineage=0, places_trained=1, next_index=1)
    with pytest.raises(CheckpointError, match="goes on from the start") as caught, folder.writing_checkpoint(state):
        raise OSError(28, "No space left on device")
    assert ("rollouts" in str(caught.value)) is online
