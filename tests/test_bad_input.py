"""Whole runs on bad input: a clear message and the right exit status, nothing finished lost, no process left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from whole_runs import WholeRun

from agentrl.quickstart import model_path
from agentrl.rollout_log import read_dispositions
from agentrl.run_folder import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds processes through /proc")]

DONE, FAILED, WRONG_CONFIG, INTERRUPTED = 0, 1, 2, 130
SMALL = {
    "steps": 2,
    "group_size": 2,
    "groups_per_step": 2,
    "sampling.max_tokens": 4,
    "sampling.temperature": 2,
    "rollout.env_workers": 1,
    "engine.threads": 1,
    "learner.threads": 1,
    "checkpoint.every": 2,
    "learner.lr": 1e-4,
}
LONG = 100_000
"""Steps of a run that something else ends."""


def sets(**changes):
    return [part for key, value in changes.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def train(tmp_path, env="Bad", *, model="quickstart", limit=None, **changes):
    """A small run of an environment in bad_env.py, in `tmp_path/run`."""
    shutil.copy(Path(__file__).parent / "bad_env.py", tmp_path)
    small = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    arguments = ["--env", f"bad_env.py:{env}", "--model", model, "--output", "run", *small, *sets(**changes)]
    return WholeRun(tmp_path, "train", *arguments, limit=limit)


def resume(tmp_path, **changes):
    return WholeRun(tmp_path, "train", "--resume", "run", *sets(**changes))


def steps_of(run_folder):
    return [one["step"] for one in read_metrics(run_folder)]


def checkpoints_of(run_folder):
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def assert_each_group_has_one_disposition(run_folder):
    indices = sorted(record.index for record in read_dispositions(run_folder / "rollouts"))
    assert indices == list(range(len(indices)))


def test_an_environment_whose_every_score_hangs_fails_the_run(tmp_path):
    with train(tmp_path, "Bad?where=score&how=spin", rollout__score_timeout_s=1) as run:
        status, _, errors = run.end()
    assert status == FAILED
    assert errors.startswith("agentrl: 100% of the last 8 groups could not be scored")
    assert "times: score took longer than 1 s. Mend that, or raise the limit" in errors
    assert_each_group_has_one_disposition(tmp_path / "run")


def test_an_environment_that_kills_its_worker_fails_the_run(tmp_path):
    with train(tmp_path, "Bad?where=start&how=die") as run:
        status, _, errors = run.end()
    assert (status, "its worker died: it ended with status 7" in errors) == (FAILED, True)


def test_rewards_that_are_all_equal_fail_the_run_at_its_end(tmp_path):
    with train(tmp_path, "Bad?where=score&how=half", steps=10) as run:
        run.wait_for("10 steps in a row changed no weight")
        status, _, errors = run.end()
    assert (status, "in every group all rewards were equal (reward/mean 0.5" in errors) == (FAILED, True)
    assert steps_of(tmp_path / "run") == list(range(1, 11))
    assert checkpoints_of(tmp_path / "run")[-1] == "step-000010"


def test_one_task_is_enough_and_its_end_is_told(tmp_path):
    with train(tmp_path, "Bad?where=tasks&how=one row", epochs=1, group_size=4) as run:
        run.wait_for("the data ended after 1 of 2 steps")
        status, _, errors = run.end()
    assert (status, errors) == (DONE, "")


def test_messages_need_a_chat_template(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_path(), model)
    (model / "chat_template.jinja").unlink()
    with train(tmp_path, "messages", model=str(model)) as run:
        status, _, errors = run.end()
    assert status == WRONG_CONFIG
    assert errors.startswith("agentrl: the environment gives messages, but the model's tokenizer has no chat template; give it one")


def test_the_engine_says_itself_what_it_cannot_serve(tmp_path):
    with train(tmp_path, engine__context_length=1_000_000) as run:
        status, _, errors = run.end()
    assert status == WRONG_CONFIG
    assert errors.startswith("agentrl: engine.context_length is 1000000; the model allows at most ")


def test_a_model_whose_weights_are_cut_off_is_a_wrong_configuration(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_path(), model)
    os.truncate(model / "model.safetensors", 100_000)
    with train(tmp_path, model=str(model)) as run:
        status, _, errors = run.end()
    assert status == WRONG_CONFIG
    assert "does not load as a causal language model" in errors
    assert "Traceback" not in errors


def test_a_prompt_longer_than_the_context_is_counted_and_told(tmp_path):
    with train(tmp_path, engine__context_length=3) as run:
        status, _, errors = run.end()
    assert status == FAILED
    assert "tokens does not fit in " in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_tasks_hang_ends_the_start_at_once(tmp_path, number):
    os.mkfifo(tmp_path / "spinning")
    with train(tmp_path, "Bad?where=tasks&how=spin") as run:
        (tmp_path / "spinning").read_text()  # waits until the environment opens it
        run.send(number)
        status, _, _ = run.end(timeout_s=20)
    assert status == INTERRUPTED


def test_an_interrupted_run_goes_on_though_its_files_were_torn(tmp_path):
    folder = tmp_path / "run"
    with train(tmp_path, steps=LONG) as run:
        run.wait_for("step 1/")
        with WholeRun(tmp_path, "train", "--resume", "run") as second:
            status, _, errors = second.end()
            assert (status, "another process is using the run folder" in errors) == (WRONG_CONFIG, True)
        run.send(signal.SIGINT)
        status, output, errors = run.end()
    assert (status, errors) == (INTERRUPTED, "")
    assert "go on with: agentrl train --resume run" in output
    done = steps_of(folder)[-1]
    assert checkpoints_of(folder)[-1] == f"step-{done:06d}"
    assert (folder / "model" / "config.json").is_file()

    for name in ("metrics.jsonl", "rollouts/groups-000.jsonl", "rollouts/dispositions.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"step": 9, "torn')
    with resume(tmp_path, steps=done + 2) as run:
        status, _, errors = run.end()
    assert (status, errors) == (DONE, "")
    assert steps_of(folder) == list(range(1, done + 3))
    assert_each_group_has_one_disposition(folder)


def test_a_full_disk_at_a_checkpoint_loses_nothing(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))  # weights pass, the optimizer's state does not

    folder = tmp_path / "run"
    with train(tmp_path, steps=3, limit=limit) as run:
        status, _, errors = run.end()
    assert status == FAILED
    assert errors.startswith("agentrl: cannot write the checkpoint of step 2 to ")
    assert "free some space and run `agentrl train --resume run`: it goes on from the start, and finished rollouts are not lost" in errors
    assert list((folder / "checkpoints").iterdir()) == []
    groups = (folder / "rollouts" / "groups-000.jsonl").read_bytes()
    with resume(tmp_path) as run:
        status, _, errors = run.end()
    assert (status, errors) == (DONE, "")
    assert steps_of(folder) == [1, 2, 3]
    assert (folder / "rollouts" / "groups-000.jsonl").read_bytes() == groups
    played = sum(path.read_bytes().count(b"\n") for path in (folder / "rollouts").glob("groups-*.jsonl"))
    assert played <= 10, "rollouts that were finished are not generated again"
    assert_each_group_has_one_disposition(folder)


def test_a_killed_engine_ends_the_run_with_a_checkpoint(tmp_path):
    with train(tmp_path, steps=LONG) as run:
        run.wait_for("step 1/")
        run.kill("agentrl.engines.embedded_server")
        status, output, errors = run.end()
    assert status == FAILED
    assert errors.startswith("agentrl: the embedded engine was killed by SIGKILL")
    assert "go on with: agentrl train --resume run" in output
    assert checkpoints_of(tmp_path / "run")[-1] == f"step-{steps_of(tmp_path / 'run')[-1]:06d}"


def test_a_killed_rollout_process_or_worker_is_replaced(tmp_path):
    with train(tmp_path, steps=LONG) as run:
        run.wait_for("step 1/")
        run.kill("agentrl.rollout.host")
        run.wait_for("step ")
        run.kill("agentrl.rollout.worker")
        for _ in range(3):
            run.wait_for("step ")
        run.send(signal.SIGINT)
        status, _, errors = run.end()
    assert (status, errors) == (INTERRUPTED, "")


def test_a_killed_tasks_process_ends_the_run_with_a_checkpoint(tmp_path):
    with train(tmp_path, steps=LONG) as run:
        run.wait_for("step 1/")
        run.kill("agentrl.rollout.rows")
        status, _, errors = run.end()
    assert (status, "tasks('train'): its process was killed by SIGKILL" in errors) == (FAILED, True)
    assert checkpoints_of(tmp_path / "run")[-1] == f"step-{steps_of(tmp_path / 'run')[-1]:06d}"


def test_a_killed_trainer_leaves_nobody_behind(tmp_path):
    with train(tmp_path, steps=LONG) as run:
        run.wait_for("step 1/")
        run.send(signal.SIGKILL)
        assert run.end()[0] == -signal.SIGKILL


def test_an_evaluation_that_scores_nothing_fails_and_keeps_its_rollouts(tmp_path):
    shutil.copy(Path(__file__).parent / "bad_env.py", tmp_path)
    environment = "bad_env.py:Bad?where=score&how=nan"
    arguments = ["--env", environment, "--model", "quickstart", "--num-tasks", "3", "--output", "found", "--json"]
    with WholeRun(tmp_path, "eval", *arguments, *sets(sampling__max_tokens=4, rollout__env_workers=1)) as run:
        status, output, errors = run.end()
    assert (status, output) == (FAILED, "")
    assert f"agentrl: not one of 3 tasks could be scored: environment {environment}, score: score returned nan" in errors
    kept = [json.loads(line) for line in (tmp_path / "found" / "rollouts.jsonl").read_text().splitlines()]
    assert sorted(group["index"] for group in kept) == [0, 1, 2]
