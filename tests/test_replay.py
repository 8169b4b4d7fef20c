from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fakes import make_group

from agentrl import objectives
from agentrl.config import ReplayConfig, RunConfig
from agentrl.errors import CheckpointError, ConfigError
from agentrl.needs import check_needs
from agentrl.objectives import Needs
from agentrl.replay import Replay, priority
from agentrl.restore import open_replay
from agentrl.rollout_log import RolloutLog
from agentrl.run_folder import ReplayEntry, RunFolder, RunState

EVEN = [1.0, 1.0]


def make_replay(seed=0, **options):
    return Replay(ReplayConfig(**options), Needs(group_size=2), seed=seed)


def spread(index, gap, step=0):
    """A group whose two rewards are so far apart."""
    return make_group(index, [0.0, gap], step=step)


def kept(replay):
    return [entry.index for entry in replay.entries]


def test_priorities_are_those_of_the_formula():
    rewards = np.array([0.0, 1.0, 1.0, 3.0])
    std = rewards.std(ddof=1)
    expected = np.abs((rewards - rewards.mean()) / (std + 1e-4)).sum() * std
    assert priority(make_group(0, [0.0, 1.0, None, 1.0, 3.0])) == pytest.approx(expected, rel=1e-12)
    assert priority(make_group(0, EVEN)) == 0.0
    assert priority(spread(0, 2.0)) > priority(spread(0, 1.0))


def test_only_groups_without_a_signal_are_replaced_and_each_at_most_once():
    replay = make_replay()
    replay.take_in([spread(0, 1.0), spread(1, 1.0), make_group(2, EVEN)], 1)
    assert kept(replay) == [0, 1], "a group without a signal is not kept"
    step = [make_group(3, EVEN), spread(4, 1.0), make_group(5, EVEN), make_group(6, EVEN)]
    trained, metrics = replay.fill(step, 3)
    assert sorted(group.index for group in trained[:1] + trained[2:3]) == [0, 1], "both in the first places, neither twice"
    assert [trained[1].index, trained[3].index] == [4, 6], "one that has a signal stays, and so does one for which nothing is left"
    assert metrics == {"replay/replaced": 2.0, "replay/size": 2.0, "replay/age_mean": 3.0, "replay/age_max": 3.0}
    assert [group.index for group in step] == [3, 4, 5, 6], "what the buffer disposes of is what was dispatched"


def test_nothing_kept_replaces_nothing():
    step = [make_group(0, EVEN)]
    trained, metrics = make_replay().fill(step, 0)
    assert trained == step
    assert set(metrics.values()) == {0.0}


def test_a_draw_depends_on_seed_and_step_and_on_nothing_else():
    step = [make_group(100, EVEN), make_group(101, EVEN)]

    def draws(seed, order=1):
        replay = make_replay(seed)
        replay.take_in([spread(index, 1.0) for index in range(10)][::order], 1)
        return [tuple(group.index for group in replay.fill(step, done)[0]) for done in range(1, 21)]

    assert draws(3) == draws(3) == draws(3, order=-1)
    assert draws(3) != draws(4)
    assert len(set(draws(3))) > 10, "steps draw differently"


def test_groups_are_drawn_in_proportion_to_their_priorities():
    replay = make_replay()
    replay.take_in([spread(0, 1.0), spread(1, 2.0), spread(2, 5.0)], 1)
    weights = np.array([entry.priority for entry in replay.entries])
    drawn = Counter(replay.fill([make_group(9, EVEN)], done)[0][0].index for done in range(1, 4001))
    shares = np.array([drawn[index] for index in range(3)]) / 4000
    expected = weights / weights.sum()
    assert expected == pytest.approx([1 / 8, 2 / 8, 5 / 8], rel=1e-3)
    assert np.abs(shares - expected).max() < 4 * 0.5 / np.sqrt(4000)


def test_a_chance_too_small_for_a_float_does_not_stop_a_draw():
    replay = make_replay()
    replay.take_in([spread(0, 1e-150), spread(1, 1e200)], 1)
    trained, _ = replay.fill([make_group(8, EVEN), make_group(9, EVEN)], 1)
    assert sorted(group.index for group in trained) == [0, 1]


def test_the_least_makes_room_for_one_that_ranks_above_it():
    replay = make_replay(size=2)
    replay.take_in([spread(0, 1.0), spread(1, 3.0)], 1)
    replay.take_in([spread(2, 1.0)], 2)
    assert kept(replay) == [0, 1], "an equal one does not"
    replay.take_in([spread(3, 2.0)], 3)
    assert kept(replay) == [1, 3]
    replay.take_in([spread(4, 4.0), spread(5, 2.5)], 4)
    assert kept(replay) == [1, 4]


def test_of_equal_ones_the_oldest_makes_room():
    replay = make_replay(size=2)
    replay.take_in([spread(7, 1.0)], 1)
    replay.take_in([spread(3, 1.0)], 2)
    replay.take_in([spread(9, 2.0)], 3)
    assert kept(replay) == [3, 9]


def test_what_is_too_old_is_neither_drawn_nor_kept():
    replay = make_replay(max_age=2)
    replay.take_in([spread(0, 9.0)], 1)
    replay.take_in([spread(1, 1.0)], 2)
    step = [make_group(8, EVEN), make_group(9, EVEN)]
    assert sorted(group.index for group in replay.fill(step, 2)[0]) == [0, 1], "in step 3 the first is 2 steps old"
    trained, metrics = replay.fill(step, 3)
    assert [group.index for group in trained] == [1, 9]
    assert (metrics["replay/age_max"], metrics["replay/size"]) == (2.0, 1.0)
    replay.take_in([], 3)
    assert kept(replay) == [1]


def folder_with(tmp_path, groups, entries):
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    log = RolloutLog(folder.rollouts, 0)
    for group in groups:
        log.write(group)
    log.close()
    with folder.writing_checkpoint(RunState(step=4, lineage=0, places_trained=8, next_index=8, replay=entries)):
        pass
    return folder


def make_config(**values):
    return RunConfig.model_validate({"model": "m", "env": "e", "replay": {}} | values)


def test_a_checkpoint_brings_back_what_was_kept(tmp_path):
    replay = make_replay()
    groups = [spread(index, 0.1 + index / 3) for index in range(6)]
    replay.take_in(groups[:3], 1)
    replay.take_in(groups[3:], 4)
    folder = folder_with(tmp_path, groups, replay.entries)
    restored = open_replay(make_config(), folder, folder.latest_checkpoint(), Needs(group_size=2))
    assert restored.entries == replay.entries, "priorities to the last bit"
    step = [make_group(8, EVEN), make_group(9, EVEN)]
    for done in range(4, 12):
        mine, theirs = restored.fill(step, done), replay.fill(step, done)
        assert mine[1] == theirs[1]
        assert [group.index for group in mine[0]] == [group.index for group in theirs[0]]
        assert [group.scores for group in mine[0]] == [group.scores for group in theirs[0]]


def test_a_smaller_size_keeps_the_highest(tmp_path):
    replay = make_replay()
    groups = [spread(0, 2.0), spread(1, 1.0), spread(2, 3.0)]
    replay.take_in(groups, 1)
    folder = folder_with(tmp_path, groups, replay.entries)
    assert kept(open_replay(make_config(replay={"size": 2}), folder, folder.latest_checkpoint(), Needs(group_size=2))) == [0, 2]


def test_a_group_that_the_log_has_lost_is_named(tmp_path):
    entries = (ReplayEntry(index=0, step=1, priority=1.0), ReplayEntry(index=7, step=2, priority=1.0))
    folder = folder_with(tmp_path, [spread(0, 1.0)], entries)
    with pytest.raises(CheckpointError, match=r"step-000004 replays group 7, which .*rollouts does not hold: .* --set replay=null"):
        open_replay(make_config(), folder, folder.latest_checkpoint(), Needs(group_size=2))
    assert open_replay(make_config(replay=None), folder, folder.latest_checkpoint(), Needs(group_size=2)) is None


def test_a_checkpoint_without_replay_starts_with_nothing(tmp_path):
    folder = folder_with(tmp_path, [spread(0, 1.0)], ())
    assert open_replay(make_config(), folder, folder.latest_checkpoint(), Needs(group_size=2)).entries == ()
    assert open_replay(make_config(), folder, None, Needs(group_size=2)).entries == ()


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"name": "dapo"}, "both fill the places of groups whose rewards are all equal: set objective.dynamic_sampling=false"),
        ({"name": "reinforce"}, "objective 'reinforce' learns from those too with these options"),
        ({"name": "ppo"}, "objective 'ppo' learns from those too with these options"),
        ({"name": "grpo", "baseline": "batch", "scale_rewards": "none"}, "objective 'grpo' learns from those too with these options"),
        (
            {"name": "online_dpo", "preferences": "judge"},
            "learns from a judge's preferences: remove replay, or set objective.preferences=reward",
        ),
        ({"name": "nash_md"}, "with objective 'nash_md' the rival changes as the run goes on"),
        ({"name": "grpo"}, None),
        ({"name": "dapo", "dynamic_sampling": False}, None),
        ({"name": "online_dpo"}, None),
        ({"name": "xpo"}, None),
    ],
)
def test_objectives_that_replay_would_train_wrongly_are_refused(objective, said):
    options = objectives.validate(objective)
    needs = objectives.get(objective["name"]).needs(options)
    check_needs(make_config(replay=None), needs, objective["name"])
    if said is None:
        check_needs(make_config(), needs, objective["name"])
        return
    with pytest.raises(ConfigError, match=said):
        check_needs(make_config(), needs, objective["name"])


def test_a_rival_whose_reference_moves_is_refused():
    needs = objectives.get("xpo").needs(objectives.validate({"name": "xpo"}))
    with pytest.raises(ConfigError, match="the rival changes as the run goes on"):
        check_needs(make_config(learner={"reference_sync": {}}), needs, "xpo")


def test_unscorable_members_count_nowhere():
    assert priority(make_group(0, [0.0, None, 1.0])) == priority(make_group(0, [0.0, 1.0]))
    group = make_group(0, [0.0, 1.0])
    assert priority(replace(group, rollouts=group.rollouts[:1])) == 0.0
