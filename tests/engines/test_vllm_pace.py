"""The limit of requests in flight follows the server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.engines.vllm_pace import FIRST, Load, Pace, read_load


def load(*, waiting=0, cache=0.1, preemptions=0):
    return Load(running=1, waiting=waiting, cache=cache, preemptions=preemptions)


def test_figures_are_summed_over_a_servers_engines_and_others_are_left_alone():
    text = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="policy"} 3.0
vllm:num_requests_running{engine="1",model_name="policy"} 4.0
vllm:num_requests_waiting{engine="0",model_name="policy"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="policy",reason="capacity"} 50.0
vllm:kv_cache_usage_perc{engine="0",model_name="policy"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="policy"} 0.75
vllm:num_preemptions_total{engine="0",model_name="policy"} 6.0
vllm:num_preemptions_created{engine="0",model_name="policy"} 1.7e+09
"""
    assert read_load(text) == Load(running=7, waiting=2, cache=0.75, preemptions=6)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "--disable-log-stats"), ("vllm:num_requests_running nan", "as nan"), ("vllm:num_requests_running x", "could not convert")],
)
def test_figures_that_are_missing_or_no_numbers_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        read_load(text)


def test_it_doubles_while_requests_want_in_and_the_server_keeps_up():
    pace = Pace(None)
    for _ in range(3):
        pace.follow(load(), in_flight=pace.limit, wanted=True)
    assert pace.limit == FIRST * 8


def test_it_does_not_grow_unless_it_is_what_holds_requests_back():
    pace = Pace(None)
    pace.follow(load(), in_flight=FIRST, wanted=False)
    pace.follow(load(), in_flight=FIRST - 1, wanted=True)
    pace.follow(load(cache=0.95), in_flight=FIRST, wanted=True)
    pace.follow(load(waiting=1), in_flight=FIRST, wanted=True)
    assert pace.limit == FIRST


def test_it_shrinks_to_what_the_server_holds_when_requests_wait_there_twice_and_then_climbs_slowly():
    pace = Pace(None)
    pace.follow(load(waiting=4), in_flight=FIRST, wanted=True)
    pace.follow(load(waiting=4), in_flight=FIRST, wanted=True)
    assert pace.limit == FIRST - 4
    pace.follow(load(waiting=28), in_flight=FIRST - 4, wanted=True)
    assert pace.limit == (FIRST - 4) * 3 // 4
    pace.follow(load(), in_flight=pace.limit, wanted=True)
    assert pace.limit == 21 + 21 // 8


def test_it_shrinks_at_the_first_preemption_but_not_for_those_before_it_looked():
    pace = Pace(None)
    pace.follow(load(preemptions=5), in_flight=FIRST, wanted=True)
    assert pace.limit == FIRST * 2
    pace.follow(load(preemptions=6), in_flight=FIRST * 2, wanted=True)
    assert pace.limit == FIRST * 2 - FIRST // 4


def test_it_never_passes_the_users_bound():
    pace = Pace(40)
    for _ in range(3):
        pace.follow(load(), in_flight=pace.limit, wanted=True)
    assert pace.limit == 40
    assert Pace(3).limit == 3


@given(
    st.none() | st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1), st.integers(0, 9), st.integers(0, 300), st.booleans()), max_size=60),
)
def test_it_stays_between_one_and_the_bound_whatever_the_server_says(most, looks):
    pace = Pace(most)
    for waiting, cache, preemptions, in_flight, wanted in looks:
        pace.follow(load(waiting=waiting, cache=cache, preemptions=preemptions), in_flight=in_flight, wanted=wanted)
        assert 1 <= pace.limit <= (most or pace.limit)
