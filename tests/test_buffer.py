from __future__ import annotations

import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import make_group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.admission import Admission
from agentrl.buffer import Buffer
from agentrl.config import LimitsConfig
from agentrl.curriculum import Curriculum
from agentrl.dispositions import has_signal, member_dispositions
from agentrl.errors import RunCannotLearn, SamplerUnavailable
from agentrl.objectives import Needs, get, validate
from agentrl.records import SamplingContract, Score, TokenSpan, Turn
from agentrl.rollout_log import RolloutLog, cut_dispositions, read_dispositions, read_groups
from agentrl.run_folder import RunState
from agentrl.tasks import TaskSource

ROWS = [{"prompt": str(number)} for number in range(50)]


SIGNAL = Needs(group_size=2, signal=True)
"""Of an objective with dynamic sampling."""


def make_buffer(folder, *, groups_per_step=2, eta=0, lineage=0, limits=None, needs=None, **admission):
    return Buffer(
        Admission(groups_per_step=groups_per_step, max_staleness=eta, **admission),
        Curriculum(TaskSource("fake", ROWS, seed=0)),
        RolloutLog(folder, lineage),
        limits or LimitsConfig(wait_s=60),
        lineage=lineage,
        needs=needs or Needs(group_size=2),
    )


def play(buffer, rewards=(1.0, 0.0)):
    """Play every group that may be dispatched."""
    played = []
    while (dispatch := buffer.dispatch()) is not None:
        buffer.finished(make_group(dispatch.index, list(rewards), step=dispatch.version.step, task=dispatch.task))
        played.append(dispatch.index)
    return played


def test_a_step_wakes_the_generators_and_a_group_wakes_the_learner(tmp_path):
    buffer = make_buffer(tmp_path)
    opened = []
    buffer.on_open = lambda: opened.append(True)
    taken = []
    learner = threading.Thread(target=lambda: taken.append(buffer.take()))
    learner.start()
    assert play(buffer) == [0, 1]
    learner.join(60)
    assert [group.index for group in taken[0]] == [0, 1]
    assert buffer.dispatch() is None
    opened.clear()
    buffer.trained(taken[0])
    assert opened
    assert play(buffer) == [2, 3]


@pytest.mark.parametrize("groups_per_step", [1, 2, 4])
def test_a_resume_may_change_the_size_of_a_step(tmp_path, groups_per_step):
    buffer = make_buffer(tmp_path)
    for _ in range(6):
        play(buffer)
        buffer.trained(buffer.take())
    disposed = cut_dispositions(tmp_path, 6)
    resumed = make_buffer(tmp_path, groups_per_step=groups_per_step, eta=1, lineage=1)
    resumed.restore(RunState(step=6, lineage=0, places_trained=12, next_index=12), disposed, ())
    assert play(resumed) == list(range(12, 12 + 2 * groups_per_step)), "as far ahead as the bound allows, and no farther"


def test_what_failed_is_told_where_nothing_comes(tmp_path):
    buffer = make_buffer(tmp_path, limits=LimitsConfig(wait_s=0.01, max_unscorable_share=1))
    first = buffer.dispatch()
    buffer.finished(make_group(first.index, [None, None], task=first.task))
    said = r"wait_s=0.01 s: 0 groups are finished.*1 groups could not be scored; .*2 times: fake failure"
    with pytest.raises(RunCannotLearn, match=said):
        buffer.take()
    assert "1 groups could not be scored" in buffer.why_nothing_came()


def test_an_unscorable_group_is_counted_and_replaced(tmp_path):
    buffer = make_buffer(tmp_path)
    first = buffer.dispatch()
    buffer.finished(make_group(first.index, [None, 1.0], task=first.task))
    assert play(buffer) == [1, 2]
    assert [group.index for group in buffer.take()] == [1, 2]
    assert buffer.counts().unscorable_groups == 1
    assert read_dispositions(tmp_path)[0].members == ("unscorable", "unscorable")


def test_a_run_in_which_nothing_can_be_scored_stops_with_the_reason(tmp_path):
    buffer = make_buffer(tmp_path, groups_per_step=1)
    for _ in range(20):
        dispatch = buffer.dispatch()
        if dispatch is None:
            break
        buffer.finished(make_group(dispatch.index, [None, None], task=dispatch.task))
    with pytest.raises(RunCannotLearn, match=r"100% of the last 8 groups.*fake failure"):
        buffer.take()


def test_a_dead_process_wakes_the_learner_at_once(tmp_path):
    buffer = make_buffer(tmp_path)
    caught = []

    def wait():
        try:
            buffer.take()
        except SamplerUnavailable as error:
            caught.append(error)

    learner = threading.Thread(target=wait)
    learner.start()
    buffer.fail(SamplerUnavailable("the engine died"))
    learner.join(60)
    assert str(caught[0]) == "the engine died"
    assert buffer.dispatch() is None


def test_waiting_has_a_deadline_that_says_what_was_there(tmp_path):
    buffer = make_buffer(tmp_path, limits=LimitsConfig(wait_s=0.05))
    buffer.dispatch()
    with pytest.raises(RunCannotLearn, match="0 groups are finished and 1 in flight"):
        buffer.take()


def test_requeue_cancels_what_keeps_a_full_step_waiting(tmp_path):
    buffer = make_buffer(tmp_path, groups_per_step=1, eta=1, on_bound="requeue")
    cancelled, done = [], threading.Event()
    buffer.on_cancel = lambda index: (cancelled.append(index), done.set())
    slow, quick = buffer.dispatch(), buffer.dispatch()
    buffer.finished(make_group(quick.index, [1.0, 0.0], task=quick.task))
    buffer.trained(buffer.take())
    third = buffer.dispatch()
    buffer.finished(make_group(third.index, [1.0, 0.0], task=third.task, step=1))
    assert [group.index for group in buffer.take()] == [third.index]
    assert done.wait(60)
    assert cancelled == [slow.index]
    assert buffer.counts().requeued == 1


def test_members_have_one_disposition_each():
    assert member_dispositions(make_group(0, [1.0, 0.0, None]), Needs(group_size=2)) == ("trained", "trained", "unscorable")
    assert member_dispositions(make_group(0, [0.5, 0.5, None]), Needs(group_size=2)) == ("no_signal", "no_signal", "unscorable")
    assert member_dispositions(make_group(0, [1.0, None, None]), Needs(group_size=2)) == ("no_signal", "unscorable", "unscorable")
    untrained = make_group(0, [1.0, 0.0])
    theirs = replace(untrained.rollouts[0], turns=tuple(replace(turn, trained=False) for turn in untrained.rollouts[0].turns))
    mixed = replace(untrained, rollouts=(theirs, untrained.rollouts[1]))
    assert member_dispositions(mixed, Needs(group_size=2)) == ("no_signal", "trained")


def test_a_resume_replays_what_was_finished_and_trains_a_prefix(tmp_path):
    """Steps 1 to 3 were trained, the checkpoint is of step 1, and group 9 was in flight when the run died."""
    buffer = make_buffer(tmp_path, eta=1)
    for _ in range(3):
        play(buffer)
        buffer.trained(buffer.take())
    dispatches = [buffer.dispatch() for _ in range(4)]
    assert [dispatch and dispatch.index for dispatch in dispatches] == [8, 9, None, None]
    buffer.finished(make_group(8, [1.0, 0.0], step=3))

    disposed = cut_dispositions(tmp_path, 1)
    assert sorted(disposed) == [0, 1]
    resumed = make_buffer(tmp_path, eta=1, lineage=1)
    resumed.restore(RunState(step=1, lineage=0, places_trained=2, next_index=6), disposed, read_groups(tmp_path, skip=disposed.keys()))
    assert resumed.dispatch() is None, "finished groups fill the places up to 8"
    trained = [0, 1]
    for _ in range(4):
        groups = resumed.take()
        trained += [group.index for group in groups]
        resumed.trained(groups)
        played = play(resumed)
        assert set(played) <= {9, 10, 11, 12, 13}
    assert trained == list(range(10))
    resumed.drop_rest()
    records = read_dispositions(tmp_path)
    assert sorted(record.index for record in records) == list(range(14)), "exactly one disposition a dispatched group"


def play_scores(buffer, scores, *, most=1000):
    """Play every group that may be dispatched, each with the next scores; returns what was played."""
    played = []
    while len(played) < most and (dispatch := buffer.dispatch()) is not None:
        group = make_group(dispatch.index, list(next(scores)), step=dispatch.version.step, task=dispatch.task)
        played.append(group)
        buffer.finished(group)
    return played


SCORES = st.lists(st.sampled_from([(1.0, 0.0), (0.5, 0.5), (None, 1.0), (0.0, 2.0, 0.0), (1.0, None, 1.0), (3.0, None, 1.0)]), max_size=12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(first=SCORES, groups_per_step=st.integers(1, 3), eta=st.integers(0, 2), order=st.sampled_from(["dispatch", "finished"]))
def test_dynamic_sampling_trains_full_steps_of_groups_that_differ(tmp_path, first, groups_per_step, eta, order):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    limits = LimitsConfig(wait_s=60, max_unscorable_share=1)
    buffer = make_buffer(folder, groups_per_step=groups_per_step, eta=eta, limits=limits, needs=SIGNAL, order=order)
    scores, played, trained = iter([*first, *[(1.0, 0.0)] * 100]), [], []
    for step in range(3):
        played += play_scores(buffer, scores)
        groups = buffer.take()
        assert len(groups) == groups_per_step
        for group in groups:
            assert len({score for score in group.scores if score is not None}) > 1
            assert step - group.dispatched.step <= eta
        trained += [group.index for group in groups]
        buffer.trained(groups)
    equal = {
        group.index
        for group in played
        if sum(score is not None for score in group.scores) > 1 and not has_signal(group, Needs(group_size=2))
    }
    counts = buffer.counts()
    assert counts.filtered_groups == len(equal)
    assert counts.unscorable_groups == sum(sum(score is not None for score in group.scores) < 2 for group in played)
    buffer.drop_rest()
    records = read_dispositions(folder)
    assert sorted(record.index for record in records) == list(range(len(played)))
    assert {record.index for record in records if set(record.members) == {"filtered"}} == equal
    assert sorted(record.index for record in records if record.step is not None) == sorted(trained)


def test_a_filtered_group_gives_its_place_back(tmp_path):
    buffer = make_buffer(tmp_path, needs=SIGNAL)
    opened = []
    buffer.on_open = lambda: opened.append(True)
    first, second = buffer.dispatch(), buffer.dispatch()
    assert buffer.dispatch() is None
    buffer.finished(make_group(first.index, [0.5, 0.5], task=first.task))
    assert opened, "its place is free at once"
    third = buffer.dispatch()
    assert (third.index, buffer.dispatch()) == (2, None)
    for one in (second, third):
        buffer.finished(make_group(one.index, [1.0, 0.0], task=one.task))
    assert [group.index for group in buffer.take()] == [1, 2]
    assert [(record.index, record.members) for record in read_dispositions(tmp_path)] == [(0, ("filtered", "filtered"))]


def test_without_dynamic_sampling_equal_rewards_are_trained_on(tmp_path):
    buffer = make_buffer(tmp_path)
    play(buffer, rewards=(0.5, 0.5))
    groups = buffer.take()
    buffer.trained(groups)
    assert buffer.counts().filtered_groups == 0
    assert [record.members for record in read_dispositions(tmp_path)] == [("no_signal", "no_signal")] * 2


def test_what_a_judge_preferred_is_a_signal(tmp_path):
    buffer = make_buffer(tmp_path, groups_per_step=1, needs=SIGNAL)
    for chances in ((), (None,), (0.5,)):
        dispatch = buffer.dispatch()
        buffer.finished(replace(make_group(dispatch.index, [0.0, 0.0], task=dispatch.task), preferences=chances))
    dispatch = buffer.dispatch()
    buffer.finished(replace(make_group(dispatch.index, [0.0, 0.0], task=dispatch.task), preferences=(0.9,)))
    assert [group.index for group in buffer.take()] == [3]
    assert buffer.counts().filtered_groups == 3


def test_a_run_in_which_no_rewards_differ_stops_and_says_so(tmp_path):
    buffer = make_buffer(tmp_path, groups_per_step=1, limits=LimitsConfig(wait_s=60, max_filtered_groups=5), needs=SIGNAL)
    scores = [(0.25, 0.25)] * 4 + [(1.0, 0.0)]
    play_scores(buffer, iter(scores), most=5)
    buffer.trained(buffer.take())  # one that differs begins the row anew
    rest = [(0.25, 0.25)] * 3 + [(None, 1.0)] + [(0.25, 0.25)] * 9
    assert len(play_scores(buffer, iter(rest))) == 6, "an unscorable group is no end of the row"
    said = r"each of the last 5 groups that could be scored all rewards were equal \(in the last one 0.25\).*limits.max_filtered_groups"
    with pytest.raises(RunCannotLearn, match=said):
        buffer.take()
    assert buffer.counts().filtered_groups == 9


def test_data_that_ends_in_filtered_groups_says_what_became_of_them(tmp_path):
    buffer = make_buffer(tmp_path, groups_per_step=2, num_groups=5, needs=SIGNAL)
    scores = iter([(1.0, 0.0), *[(0.0, 0.0)] * 4])
    assert len(play_scores(buffer, scores)) == 5
    groups = buffer.take()
    assert [group.index for group in groups] == [0], "the last step is as large as what is left"
    buffer.trained(groups)
    assert buffer.take() == []
    assert buffer.why_nothing_came() == "in 4 groups all rewards were equal, and dynamic sampling leaves those out"


@pytest.mark.parametrize(("scores", "disposition"), [((0.5, 0.5), "filtered"), ((None, 1.0), "unscorable")])
def test_a_crash_between_the_two_lines_of_a_refused_group_is_made_good(tmp_path, scores, disposition):
    buffer = make_buffer(tmp_path, eta=1, needs=SIGNAL)
    dispatches = [buffer.dispatch() for _ in range(4)]
    buffer.finished(make_group(0, [1.0, 0.0], task=dispatches[0].task))
    RolloutLog(tmp_path, 0).write(make_group(1, list(scores), task=dispatches[1].task))  # and died
    disposed = cut_dispositions(tmp_path, 0)
    resumed = make_buffer(tmp_path, eta=1, lineage=1, needs=SIGNAL)
    resumed.restore(RunState(step=0, lineage=0, places_trained=0, next_index=0), disposed, read_groups(tmp_path, skip=disposed.keys()))
    assert [(record.index, record.members) for record in read_dispositions(tmp_path)] == [(1, (disposition, disposition))]
    assert play(resumed) == [2, 3, 4], "group 1 is not played again, and its place is"
    taken = resumed.take()
    assert [group.index for group in taken] == [0, 2]
    resumed.trained(taken)
    again = make_buffer(tmp_path, eta=1, lineage=2, needs=SIGNAL)
    disposed = cut_dispositions(tmp_path, 1)
    again.restore(RunState(step=1, lineage=1, places_trained=2, next_index=5), disposed, read_groups(tmp_path, skip=disposed.keys()))
    again.drop_rest()
    indices = [record.index for record in read_dispositions(tmp_path)]
    assert len(indices) == len(set(indices)), "one disposition a group, however often the run died"


def test_dynamic_sampling_that_a_resume_turns_on_refuses_what_was_finished_before(tmp_path):
    buffer = make_buffer(tmp_path, eta=1)
    play(buffer, rewards=(0.5, 0.5))
    resumed = make_buffer(tmp_path, eta=1, lineage=1, needs=SIGNAL)
    resumed.restore(RunState(step=0, lineage=0, places_trained=0, next_index=0), {}, read_groups(tmp_path))
    assert play(resumed) == [4, 5, 6, 7]
    assert [group.index for group in resumed.take()] == [4, 5]


def test_a_signal_may_lie_in_parts_or_turns_where_the_objective_compares_those():
    scores = [Score(value=1.0, parts={"right": right, "style": 1.0 - right}) for right in (1.0, 0.0)]
    group = make_group(0, [1.0, 1.0])
    by_part = replace(group, rollouts=tuple(replace(one, score=score) for one, score in zip(group.rollouts, scores, strict=True)))
    assert not has_signal(by_part, SIGNAL)
    assert has_signal(by_part, replace(SIGNAL, by_part=True))
    assert not has_signal(by_part, replace(SIGNAL, by_turn=True))
    contract, span = SamplingContract(), TokenSpan(ids=[1], source=[0], logprobs=[float("nan")])
    turns = [
        [Turn(parent=-1, span=span, contract=contract, finish_reason="stop", reward=reward) for reward in order]
        for order in ((0, 1), (1, 0))
    ]
    by_turn = replace(group, rollouts=tuple(replace(one, turns=tuple(own)) for one, own in zip(group.rollouts, turns, strict=True)))
    assert not has_signal(by_turn, replace(SIGNAL, by_part=True))
    assert has_signal(by_turn, replace(SIGNAL, by_turn=True))


@pytest.mark.parametrize(
    ("options", "by_part", "by_turn"),
    [
        ({}, False, False),
        ({"reward_weights": {"right": 1.0}}, True, False),
        ({"reward_aggregation": "normalize_then_sum"}, True, False),
        ({"turn_discount": 0.9}, False, True),
    ],
)
def test_dynamic_sampling_looks_at_what_the_objective_compares(options, by_part, by_turn):
    needs = get("dapo").needs(validate({"name": "dapo", **options}))
    assert (needs.signal, needs.by_part, needs.by_turn) == (True, by_part, by_turn)
