"""Whole runs, from the command line, killed at random points: what was finished is not lost, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrl.dispositions import has_signal
from agentrl.objectives import Needs
from agentrl.replay import priority
from agentrl.rollout_log import read_dispositions, read_groups
from agentrl.run_folder import read_metrics

STEPS, GROUPS_PER_STEP, KILLS, REPLAYED = 10_000, 4, 20, 6
ENVIRONMENT = '''
from agentrl import Environment


class Odd(Environment):
    """Rewards odd digits; takes a while, and fails now and then."""

    def tasks(self, split):
        return [{"prompt": f"{number}+1=", "number": number} for number in range(1000)]

    def score(self, episode):
        if episode.task.row["number"] % 17 == 0:
            return None
        return sum(token % 2 for token in episode.completion_ids) / max(1, len(episode.completion_ids))
'''


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "agentrl", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )


def arguments(run: Path) -> list[str]:
    changes = {
        "steps": STEPS,
        "group_size": 2,
        "groups_per_step": GROUPS_PER_STEP,
        "sampling.max_tokens": 4,
        "checkpoint.every": 4,
        "learner.lr": 1e-3,
        "max_staleness": 2,
        "rollout.env_workers": 1,
        "replay.size": REPLAYED,
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    return ["--env", "odd.py:Odd", "--model", "quickstart", "--output", str(run), *sets]


def processes_of(run: Path) -> list[str]:
    """Living processes whose working folder is the run's: this run's own, whoever their parent is by now."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == run and "Z" not in (entry / "stat").read_text().split()[2]:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def wait_for_none(run: Path, within_s: float) -> list[str]:
    deadline = time.monotonic() + within_s
    while (left := processes_of(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def wait_for_steps(run: Path, process: subprocess.Popen[bytes], lineage: int, count: int) -> None:
    """Until a process has logged so many steps of its own."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and sum(one["lineage"] >= lineage for one in read_metrics(run)) >= count:
            return
        time.sleep(0.02)


def victim_of(run: subprocess.Popen[bytes], draw: random.Random) -> int:
    """The trainer mostly, sometimes one of its children."""
    if draw.random() < 0.6:
        return run.pid
    children: list[int] = []
    for task in Path(f"/proc/{run.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end while we look
            children += [int(pid) for pid in (task / "children").read_text().split()]
    return draw.choice(children) if children else run.pid


def replay_without_kills(records, groups) -> list[tuple[int, int]]:
    """(index, step) of what a run keeps to replay that trained these groups in these steps, none of them twice."""
    kept: list[tuple[float, int, int]] = []
    for record in (record for record in records if record.step is not None and has_signal(groups[record.index], Needs())):
        entry = (priority(groups[record.index]), record.step, record.index)
        if len(kept) < REPLAYED or entry[0] > min(kept)[0]:
            kept = sorted([*kept, entry])[-REPLAYED:]
    return sorted((index, step) for _, step, index in kept)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="finds processes through /proc")
@pytest.mark.timeout(1500)
def test_killed_at_random_points_a_run_loses_nothing(tmp_path):
    (tmp_path / "odd.py").write_text(ENVIRONMENT)
    run_folder = tmp_path / "run"
    draw = random.Random(5)
    for kill in range(KILLS):
        again = ["--resume", str(run_folder)] if (run_folder / "config.yaml").exists() else arguments(run_folder)
        lineage = len(list((run_folder / "rollouts").glob("groups-*.jsonl")))
        process = start(tmp_path, *again)
        if kill % 4 == 0:
            time.sleep(draw.uniform(0.1, 6))  # somewhere in the start
        else:
            wait_for_steps(run_folder, process, lineage, draw.randint(1, 7))
            time.sleep(draw.uniform(0, 0.4))  # somewhere in a step
        assert process.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
        with contextlib.suppress(ProcessLookupError):  # a child may have ended by itself since we looked: the run is killed below
            os.kill(victim_of(process, draw), signal.SIGKILL)
        try:
            status = process.wait(draw.uniform(1, 6))
        except subprocess.TimeoutExpired:  # a rollout process or a worker was replaced and the run goes on
            process.kill()
            status = process.wait(60)
        assert status in (1, -signal.SIGKILL), (tmp_path / "output.txt").read_text()[-3000:]
        assert not wait_for_none(tmp_path, 10), "a process outlived its run"
    done = max((one["step"] for one in read_metrics(run_folder)), default=0)
    steps = done + 6
    process = start(tmp_path, "--resume", str(run_folder), "--set", f"steps={steps}")
    assert process.wait(300) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    assert not wait_for_none(tmp_path, 10), "a process outlived its run"
    print(json.dumps({"kills": KILLS, "steps": steps, "lineages": len(list((run_folder / "rollouts").glob("groups-*.jsonl")))}))

    records = read_dispositions(run_folder / "rollouts")
    assert sorted(record.index for record in records) == list(range(len(records))), "each dispatched group has one disposition"
    trained = [record.index for record in records if record.step is not None]
    unscorable = {record.index for record in records if "unscorable" in record.members and record.step is None}
    assert len(trained) == steps * GROUPS_PER_STEP
    kept = [index for index in range(len(records)) if index not in unscorable]
    assert trained == kept[: len(trained)], "the trained groups are a prefix of dispatch order"
    metrics = read_metrics(run_folder)
    assert [one["step"] for one in metrics] == list(range(1, steps + 1))
    assert max(one["staleness/max"] for one in metrics) <= 2
    groups = {group.index: group for group in read_groups(run_folder / "rollouts")}
    assert set(trained) <= set(groups)
    last = run_folder / "checkpoints" / f"step-{steps:06d}" / "run.json"
    assert [(one["index"], one["step"]) for one in json.loads(last.read_text())["replay"]] == replay_without_kills(records, groups)
    assert sum(one["replay/replaced"] for one in metrics) > 0
