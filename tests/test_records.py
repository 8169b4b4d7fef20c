from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import make_group, make_span, make_turn

from agentrl import wire
from agentrl.records import Group, Score, Source, Task, TokenSpan, Version, VersionRun


def test_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="ids has 3, logprobs has 2"):
        TokenSpan(ids=[1, 2, 3], source=[0, 0, 0], logprobs=[np.nan, np.nan])


def test_a_sampled_token_without_a_logprob_is_refused():
    with pytest.raises(ValueError, match="no log-prob"):
        TokenSpan(ids=[1], source=[Source.SAMPLED], logprobs=[np.nan], versions=(VersionRun(version=Version(), start=0, end=1),))


def test_versions_must_cover_exactly_the_sampled_tokens():
    with pytest.raises(ValueError, match="versions must cover"):
        TokenSpan(ids=[1, 2], source=[0, 1], logprobs=[np.nan, -1.0], versions=())
    with pytest.raises(ValueError, match="versions must cover"):
        TokenSpan(ids=[1, 2], source=[0, 1], logprobs=[np.nan, -1.0], versions=(VersionRun(version=Version(), start=0, end=2),))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_is_finite(value):
    with pytest.raises(ValueError, match="finite"):
        Score(value=value)


def test_an_unscorable_score_says_why():
    with pytest.raises(ValueError, match="reason"):
        Score(value=None)
    assert not Score.unscorable("grader died").scorable


def test_a_task_keeps_its_id_and_tells_environments_apart():
    row = {"prompt": "2+2=", "answer": "4"}
    assert Task.from_row("a", row).id == Task.from_row("a", dict(reversed(row.items()))).id
    assert Task.from_row("a", row).id != Task.from_row("b", row).id
    with pytest.raises(TypeError):
        Task.from_row("a", {"prompt": object()})


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_the_reward_of_a_turn_is_finite(reward):
    with pytest.raises(ValueError, match="reward of a turn must be finite"):
        replace(make_turn(make_span(1, 1)), reward=reward)


def test_rewards_of_turns_and_preferences_are_logged():
    group = make_group(3, [1.0, 0.0, None, 0.5])
    turns = (replace(group.rollouts[0].turns[0], reward=-0.25),)
    group = replace(group, rollouts=(replace(group.rollouts[0], turns=turns), *group.rollouts[1:]), preferences=(0.75, None))
    again = wire.from_json(wire.to_json_line(group), Group)
    assert again.preferences == (0.75, None)
    assert [rollout.turns[0].reward for rollout in again.rollouts] == [-0.25, 0.0, 0.0, 0.0]


def test_logs_of_before_there_were_such_still_read():
    line = json.loads(wire.to_json_line(make_group(3, [1.0, 0.0])))
    del line["preferences"]
    for rollout in line["rollouts"]:
        for turn in rollout["turns"]:
            del turn["reward"]
    group = wire.from_json(json.dumps(line), Group)
    assert group.preferences == ()
    assert {turn.reward for rollout in group.rollouts for turn in rollout.turns} == {0.0}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], ()),
        ([(False, 5.0)], ()),
        ([(True, 1.0), (True, 2.0)], (1.0, 2.0)),
        ([(False, 5.0), (False, 1.0), (True, 1.0), (False, 0.5), (True, 2.0), (False, 0.25)], (7.5, 2.25)),
    ],
)
def test_what_turns_of_others_were_given_belongs_to_the_own_turn_before(turns, expected):
    made = [replace(make_turn(make_span(2, 1)), trained=trained, reward=reward) for trained, reward in turns]
    rollout = replace(make_group(0, [1.0]).rollouts[0], turns=tuple(made))
    assert rollout.own_rewards == expected
    assert len(rollout.own_rewards) == len(rollout.own_turns)
