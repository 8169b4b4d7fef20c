"""Whole tests of environments, in processes of their own."""

import pytest
from kit_fakes import spec_of

from agentrl.env_test import Options, try_environment
from agentrl.errors import ConfigError

CHECKS = (
    "tasks",
    "start",
    "determinism",
    "play by chance",
    "golden answers",
    "trivial answers",
    "malformed calls",
    "parallel sessions",
    "cancellation",
    "leaks",
    "cost",
    "deadlines",
    "scores",
    "close",
)


def statuses(report):
    return {finding.check: finding.status for finding in report.findings}


def faults(report):
    return {finding.check: finding.got for finding in report.findings if finding.status == "failed"}


def test_every_check_is_made_and_told():
    told = []
    report = try_environment("lookup", on_check=told.append)
    assert faults(report) == {}
    assert statuses(report) == dict.fromkeys(CHECKS, "ok")
    assert told[:3] == ["tasks", "start", "determinism"]
    assert report.ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "arithmetic",
        "countdown",
        "code?tasks=tiny",
        "function-calling?dataset=bfcl",
        "nim?opponent=perfect",
        "nim",
        "search",
        "shell",
        "treasure",
        "mixture?parts=[{env: arithmetic}, {env: lookup}]",
    ],
)
def test_shipped_environments_pass(spec):
    report = try_environment(spec, Options(num_tasks=4))
    assert faults(report) == {}


@pytest.mark.slow
def test_files_of_rows_pass(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{index}+1=?", "answer": "{index + 1}"}}\n' for index in range(40)))
    rewards = "agentrl.rewards.math_answer:math_reward"
    for spec in (f"dataset?path={path}&rewards={rewards}", f"math?path={path}", f"python-math?path={path}"):
        assert faults(try_environment(spec, Options(num_tasks=4))) == {}


def test_what_names_nothing_or_cannot_be_made_is_a_wrong_spec():
    with pytest.raises(ConfigError, match="no environment is registered as 'lokup'"):
        try_environment("lokup")
    with pytest.raises(ConfigError, match="no licence"):
        try_environment(spec_of("cannot_be_made"))


def test_without_tasks_nothing_else_is_tried():
    report = try_environment(spec_of("TasksRaise"))
    assert statuses(report) == {"tasks": "failed"}


def test_where_no_task_starts_the_rest_is_skipped():
    report = try_environment(spec_of("NeverStarts"), Options(num_tasks=2))
    found = statuses(report)
    assert (found["start"], found["close"]) == ("failed", "ok")
    assert {found[check] for check in CHECKS[2:-1] if check in found} == {"skipped"}


def test_a_start_that_ends_its_process_is_told():
    report = try_environment(spec_of("Dies"), Options(num_tasks=1))
    assert "its worker died: it ended with status 1" in faults(report)["start"]


def test_what_hangs_is_not_waited_for_again_and_again():
    report = try_environment(spec_of("ScoreHangs"), Options(num_tasks=1, timeout_s=0.5))
    found = statuses(report)
    assert (found["deadlines"], found["leaks"]) == ("failed", "skipped")
    assert report.seconds < 60
