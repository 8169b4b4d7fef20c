"""`agentrl train` on an environment that is behind HTTP, as a user starts both."""

from __future__ import annotations

import json
import re
import signal

import pytest
from server_fakes import server
from whole_runs import WholeRun

SPEC = "arithmetic?digits=1"


def training(url, folder, *, steps):
    sizes = [f"steps={steps}", "groups_per_step=4", "group_size=4", "rollout.env_workers=1", "sampling.max_tokens=8"]
    options = [word for size in sizes for word in ("--set", size)]
    return WholeRun(
        folder, "train", "--env", url, "--model", "quickstart", "--objective", "grpo", "--output", str(folder / "run"), *options
    )


def rollouts(folder):
    files = [file for file in sorted((folder / "run" / "rollouts").glob("*.jsonl")) if file.name != "dispositions.jsonl"]
    groups = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [rollout for group in groups for rollout in group.get("rollouts", ())]


@pytest.mark.slow
def test_a_run_trains_on_an_environment_by_its_url(tmp_path):
    with server(spec=SPEC) as (_, url), training(url, tmp_path, steps=2) as run:
        status, said, errors = run.end()
    assert status == 0, errors
    assert "unscorable 0.0%" in said
    played = rollouts(tmp_path)
    assert len(played) >= 32
    assert {rollout["task"]["environment"] for rollout in played} == {url}
    assert {rollout["score"]["value"] for rollout in played} <= {0.0, 1.0}


@pytest.mark.slow
def test_a_run_outlives_its_environment_server(tmp_path):
    with server(spec=SPEC) as (first, url), training(url, tmp_path, steps=60) as run:
        run.wait_for("step")
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        with server("--port", url.rpartition(":")[2], spec=SPEC) as (_, again):
            assert again == url
            status, said, errors = run.end()
    assert status == 0, errors
    assert "step 60/60" in said
    failures = {rollout["reason"] for rollout in rollouts(tmp_path) if rollout["score"]["value"] is None}
    known = r"the environment server http://[\d.:]+ (does not answer: |refuses, status 404: there is no session \w+ here)"
    assert all(re.search(known, reason) for reason in failures), failures
