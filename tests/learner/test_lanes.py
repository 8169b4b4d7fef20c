from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.learner.lanes import Lanes


@settings(max_examples=60, deadline=None)
@given(own=st.integers(1, 3), spare=st.integers(0, 3), count=st.integers(0, 25), free=st.lists(st.booleans(), min_size=1))
def test_every_item_is_computed_once_and_merged_in_order(own: int, spare: int, count: int, free: list[bool]) -> None:
    if own + spare == 1:
        spare = 1
    computed: list[int] = []
    merged: list[int] = []
    answers = iter(free * 1000)

    def work(index: int) -> int:
        computed.append(index)
        return index

    Lanes(own, spare).run(count, work, merged.append, spare_free=lambda: next(answers, True))
    assert sorted(computed) == list(range(count))
    assert merged == list(range(count))


def test_spare_lanes_stay_away_until_they_are_let_in() -> None:
    threads = set()
    Lanes(1, 2).run(20, lambda index: threads.add(threading.current_thread()), lambda result: None, spare_free=lambda: False)
    assert threads == {threading.current_thread()}


def test_a_woken_spare_lane_takes_an_item_while_the_first_is_under_way() -> None:
    lanes = Lanes(1, 1)
    free, helped = threading.Event(), threading.Event()

    def work(index: int) -> None:
        if threading.current_thread() is threading.main_thread():
            if index == 0:
                free.set()
                lanes.wake()
                assert helped.wait(30), "the spare lane was not woken"
        else:
            helped.set()

    lanes.run(2, work, lambda result: None, spare_free=free.is_set)


def test_lanes_work_side_by_side() -> None:
    both = threading.Barrier(2, timeout=30)
    Lanes(2, 0).run(2, lambda index: both.wait(), lambda result: None, spare_free=lambda: False)


@pytest.mark.parametrize("failing", [0, 5, 9])
def test_the_first_error_ends_every_lane_and_is_raised(failing: int) -> None:
    merged: list[int] = []

    def work(index: int) -> int:
        if index == failing:
            raise ValueError("this one")
        return index

    lanes = Lanes(2, 1)
    with pytest.raises(ValueError, match="this one"):
        lanes.run(10, work, merged.append, spare_free=lambda: True)
    assert merged == list(range(len(merged)))
    assert len(merged) <= failing
    lanes.run(3, lambda index: index, merged.append, spare_free=lambda: True)  # and they can be used again
    assert merged[-3:] == [0, 1, 2]


def test_results_that_wait_for_an_earlier_one_are_few() -> None:
    """Each holds a copy of the gradients."""
    first = threading.Event()
    started: list[int] = []

    def work(index: int) -> None:
        started.append(index)
        if index == 0:
            assert first.wait(30)
        elif index == 3:  # as many as two lanes may be ahead
            first.set()

    Lanes(2, 0).run(12, work, lambda result: started.append(-1), spare_free=lambda: False)
    assert -1 not in started[:4]
    assert max(started[:4]) == 3
