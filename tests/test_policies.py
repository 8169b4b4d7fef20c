"""Frozen policies in whole runs: who said what, with which weights, and what a resume finds again."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from whole_runs import WholeRun

from agentrl.errors import ConfigError
from agentrl.policies import newest_snapshot, prune_snapshots, snapshot_folder, updates
from agentrl.rollout_log import read_groups
from agentrl.runfile import from_mapping

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = '''
from agentrl import Environment


class Duel(Environment):
    """Both say a number; ours should be odd."""

    def tasks(self, split):
        return [{"number": number} for number in range(100)]

    async def episode(self, task, llm):
        asked = f"{task.row['number']}+1="
        mine = await llm.chat(asked)
        past = await llm.chat(asked, policy="past")
        first = await llm.chat(asked + past.text, policy="first")
        return {"odd": float(mine.text[-1:] in "13579"), "seen": 0.0 * (past.version[1] + first.version[1])}
'''


def config_of(**policies):
    return from_mapping({"model": "quickstart", "env": "arithmetic", "policies": policies})


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ({"policy": {}}, "`policy` is the trained one"),
        ({"a b": {}}, "letters, digits"),
        ({"past": {"update_every": 0}}, "past.update_every"),
        ({"past": {"update_every": 5, "model": "m"}}, "remove model and servers"),
        ({"user": {"servers": ["http://x:1"]}}, "name the folder or Hub name"),
        ({"past": {"every": 5}}, "every"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(policies, said):
    with pytest.raises(ConfigError, match=said):
        config_of(**policies)


def test_a_policy_follows_every_so_many_steps():
    config = config_of(past={"update_every": 4}, first={})
    assert [step for step in range(13) if updates(config, step)] == [4, 8, 12]


def test_a_resume_takes_the_newest_snapshot_that_is_not_from_the_future(tmp_path):
    for step in (4, 8, 12):
        snapshot_folder(tmp_path, "past", step).mkdir(parents=True)
    assert newest_snapshot(tmp_path, "past", 3) is None
    assert newest_snapshot(tmp_path, "past", 11) == (snapshot_folder(tmp_path, "past", 8), 8)
    assert newest_snapshot(tmp_path, "other", 11) is None


@pytest.mark.parametrize(("keep", "left"), [("needed", [8, 12]), ("all", [4, 8, 12])])
def test_snapshots_that_no_checkpoint_needs_are_removed(tmp_path, keep, left):
    for step in (4, 8, 12):
        snapshot_folder(tmp_path, "past", step).mkdir(parents=True)
    prune_snapshots(config_of(past={"update_every": 4, "keep": keep}), tmp_path, [10, 12])
    assert sorted(int(path.name[5:]) for path in (tmp_path / "policies" / "past").iterdir()) == left


def arguments(steps: int) -> list[str]:
    changes = {
        "steps": steps,
        "group_size": 2,
        "groups_per_step": 4,
        "sampling.max_tokens": 6,
        "checkpoint.every": 4,
        "learner.lr": 1e-3,
        "policies": "{past: {update_every: 4, keep: all}, first: {temperature: 0}}",
    }
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]


def versions(run: Path) -> dict[str, set[int]]:
    """Steps of the weights that each policy sampled with; checks who is trained."""
    seen: dict[str, set[int]] = {}
    for group in read_groups(run / "rollouts"):
        for rollout in group.rollouts:
            assert [turn.contract.policy for turn in rollout.turns] == ["policy", "past", "first"], rollout.reason
            assert [turn.trained for turn in rollout.turns] == [True, False, False]
            for turn in rollout.turns:
                seen.setdefault(turn.contract.policy, set()).update(one.version.step for one in turn.span.versions)
    return seen


@pytest.mark.slow
def test_a_past_self_and_a_first_self_play_and_a_resume_finds_them_again(tmp_path):
    (tmp_path / "duel.py").write_text(ENVIRONMENT)
    run = tmp_path / "run"
    with WholeRun(tmp_path, "train", "--env", "duel.py:Duel", "--model", "quickstart", "--output", "run", *arguments(9)) as first:
        status, _, errors = first.end()
    assert status == 0, errors
    seen = versions(run)
    assert seen["first"] == {0}
    assert seen["past"] <= {0, 4, 8}
    assert {0, 4} <= seen["past"]
    assert len(seen["policy"]) >= 5
    assert sorted(path.name for path in (run / "policies" / "past").iterdir()) == ["step-000004", "step-000008"]
    assert (run / "policies" / "past" / "step-000004" / "config.json").exists()
    shutil.rmtree(run / "policies" / "past" / "step-000004")  # an older one is not needed
    with WholeRun(tmp_path, "train", "--resume", "run", "--set", "steps=11") as again:
        status, _, errors = again.end()
    assert status == 0, errors
    late = [group for group in read_groups(run / "rollouts") if group.dispatched.lineage == 1]
    assert late
    past = [turn for group in late for rollout in group.rollouts for turn in rollout.turns if turn.contract.policy == "past"]
    assert {(one.version.lineage, one.version.step) for turn in past for one in turn.span.versions} == {(0, 8)}
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 12))
