"""Which tasks a curriculum plays: quarantine, difficulty pools, and what a checkpoint keeps of both."""

from __future__ import annotations

import json
from collections import Counter

import msgspec
import pytest

from agentrl.config import CurriculumConfig
from agentrl.curriculum import Curriculum, TaskState
from agentrl.errors import RunCannotLearn
from agentrl.records import Group, Rollout, Score, Version
from agentrl.tasks import TaskSource

ROWS = [{"prompt": str(number)} for number in range(40)]
POOLS = CurriculumConfig(easy_share=0.0, hard_share=0.0)


def group(index, task, *scores, reason="the sandbox is down"):
    rollouts = tuple(
        Rollout(
            task=task,
            member=member,
            turns=(),
            messages=(),
            ending="complete",
            score=Score.unscorable(reason) if score is None else Score(value=score),
        )
        for member, score in enumerate(scores)
    )
    return Group(index=index, task=task, rollouts=rollouts, dispatched=Version())


def run(curriculum, places, scores_of):
    """Play these places; how often each prompt was played."""
    played = Counter()
    for place in places:
        task = curriculum.task(place)
        scores = scores_of(int(task.row["prompt"]))
        curriculum.learned(group(place, task, *scores), scorable=scores[0] is not None)
        played[int(task.row["prompt"])] += 1
    return played


def test_without_anything_it_is_the_shuffled_order():
    source = TaskSource("env", ROWS, seed=1)
    curriculum = Curriculum(TaskSource("env", ROWS, seed=1))
    assert [curriculum.task(place) for place in range(80)] == [source.task(place) for place in range(80)]
    assert curriculum.counts() == {"rollout/quarantined_tasks": 0.0}


def test_a_poison_task_is_played_so_many_times_and_no_more():
    said = []
    curriculum = Curriculum(TaskSource("env", ROWS, seed=1), quarantine_after=3)
    curriculum.say = said.append
    played = run(curriculum, range(400), lambda prompt: (None, None) if prompt == 7 else (1.0, 0.0))
    assert played[7] == 3
    assert sum(played.values()) == 400
    assert min(count for prompt, count in played.items() if prompt != 7) >= 10
    assert curriculum.counts() == {"rollout/quarantined_tasks": 1.0}
    assert len(said) == 1
    assert "3 groups in a row could not be scored, the last for: the sandbox is down" in said[0]


def test_a_task_that_recovers_is_not_quarantined():
    tries = Counter()

    def scores(prompt):
        tries[prompt] += 1
        return (None,) if tries[prompt] % 3 else (1.0,)

    curriculum = Curriculum(TaskSource("env", ROWS, seed=1), quarantine_after=3)
    played = run(curriculum, range(400), scores)
    assert set(played.values()) == {10}


def test_when_nothing_is_left_the_run_ends_with_the_reason():
    curriculum = Curriculum(TaskSource("env", ROWS[:3], seed=1), quarantine_after=2)
    with pytest.raises(RunCannotLearn, match="all 3 tasks are quarantined"):
        run(curriculum, range(100), lambda prompt: (None,))


def test_easy_and_hard_tasks_give_way_to_those_in_between():
    curriculum = Curriculum(TaskSource("env", ROWS, seed=1), POOLS)
    played = run(curriculum, range(40), lambda prompt: {0: (1.0, 1.0), 1: (0.0, 0.0), 2: (1.0, 0.0)}[prompt % 3])
    assert curriculum.counts()["curriculum/easy"] + curriculum.counts()["curriculum/hard"] > 0
    later = run(curriculum, range(40, 400), lambda prompt: {0: (1.0, 1.0), 1: (0.0, 0.0), 2: (1.0, 0.0)}[prompt % 3])
    assert {prompt % 3 for prompt in later if later[prompt] > 1} == {2}
    assert sum(played.values()) + sum(later.values()) == 400


def test_a_share_of_the_easy_ones_is_played_still():
    curriculum = Curriculum(TaskSource("env", ROWS, seed=1), CurriculumConfig(easy_share=0.25, hard_share=1.0))
    run(curriculum, range(40), lambda prompt: (1.0,) if prompt < 20 else (1.0, 0.0))
    later = run(curriculum, range(40, 840), lambda prompt: (1.0,) if prompt < 20 else (1.0, 0.0))
    easy = sum(count for prompt, count in later.items() if prompt < 20)
    assert 60 <= easy <= 140  # a quarter of 400


def test_pass_rates_follow_the_newest_group():
    curriculum = Curriculum(TaskSource("env", ROWS[:1], seed=1), CurriculumConfig())
    for place, score in enumerate((0.0, 1.0, 1.0, 1.0, 1.0)):
        curriculum.learned(group(place, curriculum.task(place), score), scorable=True)
    (state,) = curriculum.state()
    assert state.rate == 1 - 0.5**4
    assert curriculum.pool(0) == "easy"


def test_a_checkpoint_keeps_what_is_known():
    before = Curriculum(TaskSource("env", ROWS, seed=1), POOLS, quarantine_after=2)

    def scores(prompt):
        return (None,) if prompt == 5 else (float(prompt % 2),)

    run(before, range(100), scores)
    kept = msgspec.json.decode(json.dumps(msgspec.to_builtins(before.state())), type=tuple[TaskState, ...])
    again = Curriculum(TaskSource("env", ROWS, seed=1), POOLS, quarantine_after=2)
    again.restore(kept)
    assert again.counts() == before.counts()
    assert [again.task(place) for place in range(100, 200)] == [before.task(place) for place in range(100, 200)]
    task = before.task(100)
    for one in (before, again):
        one.learned(group(100, task, 1.0), scorable=True)
    assert again.state() == before.state()


def test_a_group_that_a_resume_shows_again_is_counted_once():
    before = Curriculum(TaskSource("env", ROWS, seed=1), POOLS, quarantine_after=3)
    task = before.task(0)
    before.learned(group(0, task, 1.0, 1.0), scorable=True)
    before.learned(group(40, task, 0.0, 0.0), scorable=True)
    before.learned(group(80, task, None, None), scorable=False)
    after = Curriculum(TaskSource("env", ROWS, seed=1), POOLS, quarantine_after=3)
    after.restore(msgspec.json.decode(msgspec.json.encode(before.state()), type=tuple[TaskState, ...]))
    after.learned(group(0, task, 1.0, 1.0), scorable=True)
    assert after.state() == before.state()
    (state,) = after.state()
    assert (state.rate, state.failures) == (0.5, 1)


def test_tasks_of_rows_that_are_gone_are_forgotten():
    curriculum = Curriculum(TaskSource("env", ROWS, seed=1), POOLS)
    curriculum.restore([TaskState(id="a", row=40, rate=0.5), TaskState(id="b", row=39, rate=0.5)])
    assert [state.id for state in curriculum.state()] == ["b"]
