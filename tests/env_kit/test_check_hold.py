"""Side by side, cut off, one after the other; and what episodes cost."""

import re

import pytest
from kit_fakes import checked

from agentrl.env_kit.check_answers import check_determinism
from agentrl.env_kit.check_hold import check_cancellation, check_cost, check_deadlines, check_leaks, check_parallel


@pytest.mark.parametrize("name", ["Good", "Talks"])
def test_what_holds_its_state_itself_can_be_played_side_by_side(name, tmp_path):
    assert checked(check_parallel, name, tmp_path).status == "ok"


@pytest.mark.parametrize(
    ("name", "said"), [("SharedState", "beside others of different tasks"), ("OneAtATime", "there is an episode already")]
)
def test_shared_state_fails(name, said, tmp_path):
    found = checked(check_parallel, name, tmp_path)
    assert found.status == "failed"
    assert said in found.got


@pytest.mark.parametrize("name", ["Good", "Talks"])
def test_a_cancelled_episode_leaves_nothing(name, tmp_path):
    found = checked(check_cancellation, name, tmp_path, processes=1)
    assert found.status == "ok", found.got
    assert found.facts["cuts"] == {"Good": 10, "Talks": 8}[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ClosesOnlyAfterScore", "files +"),
        ("TalksAndLeaves", "files +"),
        pytest.param(
            "CloseHangs", "cancelled during start: after 4 episodes there is more than before: threads +4", marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_cancelled_episode_leaves_fails(name, said, tmp_path):
    found = checked(check_cancellation, name, tmp_path, processes=1)
    assert found.status == "failed"
    assert said in found.got


@pytest.mark.parametrize("name", ["Good", "FillsAPool"])
def test_what_stops_growing_is_no_leak(name, tmp_path):
    found = checked(check_leaks, name, tmp_path, processes=1)
    assert found.status == "ok", found.got


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LeavesProcesses", "processes +16"),
        ("LeavesFiles", "files +16, such as left-"),
        ("LeavesDescriptors", "descriptors +16"),
        ("LeavesThreads", "threads +16"),
    ],
)
def test_leaks_fail(name, said, tmp_path):
    found = checked(check_leaks, name, tmp_path, processes=1)
    assert found.status == "failed"
    assert said in found.got


def test_what_an_open_episode_costs(tmp_path):
    found = checked(check_cost, "LeavesProcesses", tmp_path, processes=1)
    assert found.status == "ok"
    assert found.facts["processes"] == 1
    assert found.facts["worker_mib"] > 1
    assert checked(check_cost, "OneAtATime", tmp_path / "more", processes=1).status == "failed"


async def deadlines(kit):
    await check_determinism(kit)
    return check_deadlines(kit)


def test_what_does_not_come_back_fails(tmp_path):
    found = checked(deadlines, "ScoreHangs", tmp_path, processes=2, timeout_s=2, num_tasks=1)  # a start may take a while on a busy machine
    assert found.status == "failed"
    assert "score took longer than 2 s" in found.got


def test_what_is_slow_is_a_warning_and_times_are_told(tmp_path):
    found = checked(deadlines, "SlowTool", tmp_path, timeout_s=3, num_tasks=1)
    assert found.status == "warning", found.got
    took = re.search(r"tool double took up to (\d\.\d) s", found.got)
    assert took is not None, found.got
    assert 0.8 <= float(took[1]) < 3
    assert found.facts["tool double_ms"]["median"] >= 800
    assert checked(deadlines, "Good", tmp_path / "more").status == "ok"
