"""Rows held out: drawn by the seed, and never trained on under another number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.data.rows import ObjectRows
from agentrl.data.splits import digest, hold_out, repeated
from agentrl.errors import ConfigError


def rows_of(contents):
    return ObjectRows([{"n": content} for content in contents])


@given(st.lists(st.integers(0, 9), min_size=2, max_size=30).filter(lambda found: len(set(found)) > 1), st.integers(0, 5), st.data())
def test_no_content_is_both_trained_and_evaluated(contents, seed, data):
    count = data.draw(st.integers(1, len(set(contents)) - 1))
    train, held = hold_out(rows_of(contents), count, seed)
    trained, evaluated = ([contents[index] for index in chosen] for chosen in (train, held))
    assert len(held) == count == len(set(evaluated))
    assert not set(trained) & set(evaluated)
    assert sorted(trained) == sorted(one for one in contents if one not in evaluated)
    assert list(train) == sorted(train)
    assert list(held) == sorted(held)
    again = hold_out(rows_of(contents), count, seed)
    np.testing.assert_array_equal(again[1], held)


def test_the_draw_is_the_seeds():
    draws = {tuple(hold_out(rows_of(range(50)), 5, seed)[1]) for seed in range(10)}
    assert len(draws) == 10


def test_something_is_left_to_train_on():
    with pytest.raises(ConfigError, match=r"data\.eval_rows is 2, and the dataset holds 2 rows that differ"):
        hold_out(rows_of([1, 2, 1, 2, 1]), 2, 0)


def test_rows_that_cannot_be_read_are_left_to_training():
    rows = ObjectRows([{"n": 0}, 3, {"n": 1}, "x"])
    for seed in range(5):
        train, held = hold_out(rows, 1, seed)
        assert {1, 3} <= set(train)
        assert len(held) == 1


def test_the_order_of_keys_is_no_content():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_rows_of_the_evaluation_that_are_trained_on_are_found():
    train, held = ObjectRows([{"n": 1}, 3, {"n": 2}, {"n": 1}]), ObjectRows([{"n": 2}, {"n": 5}, 3, {"n": 1}])
    assert list(repeated(train, held)) == [(0, 2), (3, 0)]
