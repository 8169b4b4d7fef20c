from __future__ import annotations

import math

import numpy as np
import pytest

from agentrl.environment import Episode, SingleTurn, as_score
from agentrl.errors import EnvironmentFailure
from agentrl.records import Score, Task


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


def run_reward(returned):
    environment = SingleTurn(train=[], rewards=[lambda **_: returned])
    task = Task.from_row("e", {"prompt": "x"})
    episode = Episode(task=task, prompt="x", messages=[], completion_ids=[], ending="complete")
    try:
        environment.score(episode).send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for nothing")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "got 1 completion and returned 2 values"),
        ([], "returned 0 values"),
        (None, "returned None"),
        (1.0, "returned 1.0"),
        ("x", "returned 'x'"),
        (np.array(1.0), "returned array"),
        ({0: 1.0}, "returned {0: 1.0}"),
        ([math.nan], "returned nan; allowed: a finite number a completion"),
        ([math.inf], "returned inf"),
        (["5"], "returned '5'"),
        ([[1.0, 2.0]], r"returned \[1.0, 2.0\]"),
    ],
)
def test_a_reward_function_returns_one_finite_number_a_completion(returned, said):
    with pytest.raises(EnvironmentFailure, match=f"^reward <lambda> .*{said}"):
        run_reward(returned)


def test_a_reward_may_be_none_or_an_array():
    assert not run_reward([None]).scorable
    assert run_reward(np.array([0.25])).value == 0.25
