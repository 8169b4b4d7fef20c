from __future__ import annotations

import math

import numpy as np
import pytest

from agentrl.environment import Environment, as_preference, as_score, tool_methods
from agentrl.errors import EnvironmentFailure
from agentrl.records import Score


@pytest.mark.parametrize("value", [math.nan, math.inf, "5", b"5", [1.0], object(), {"a": math.nan}, {"a": "x"}, np.zeros(2)])
def test_what_is_no_finite_number_is_no_score(value):
    with pytest.raises(EnvironmentFailure, match=r"score returned .*; allowed: a finite number"):
        as_score("score", value)


def test_parts_of_a_score_are_numbers_too():
    with pytest.raises(ValueError, match="parts of a score must be finite"):
        Score(value=1.0, parts={"style": math.nan})


@pytest.mark.parametrize(("value", "expected"), [(True, 1.0), (np.float32(0.5), 0.5), (np.array(2), 2.0), ({"a": 1, "b": 0.5}, 1.5)])
def test_numbers_of_other_types_are_scores(value, expected):
    assert as_score("score", value).value == expected


def test_none_cannot_be_scored():
    assert as_score("score", None) == Score.unscorable("score returned None")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.01, 1.01, "0.5", b"1", [0.5], object(), np.zeros(2)])
def test_what_is_no_probability_is_no_preference(value):
    with pytest.raises(EnvironmentFailure, match=r"compare returned .*; allowed: a number from 0"):
        as_preference("compare", value)


@pytest.mark.parametrize(("value", "expected"), [(None, None), (True, 1.0), (0, 0.0), (np.float32(0.5), 0.5), (np.array(1), 1.0)])
def test_numbers_of_other_types_are_preferences(value, expected):
    assert as_preference("compare", value) == expected


def test_the_methods_that_agentrl_calls_are_no_tools():
    class Judge(Environment):
        def compare(self, first, second):
            return 0.5

        def look(self):
            return ""

    assert list(tool_methods(Judge())) == ["look"]
