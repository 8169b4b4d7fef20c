from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from agentrl.environment import Environment, Episode
from agentrl.errors import EnvironmentFailure
from agentrl.records import Score, Task
from agentrl.single_turn import SingleTurn


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


def test_an_environment_without_a_judge_says_so():
    with pytest.raises(NotImplementedError, match=r"Environment must define compare\(first, second\)"):
        Environment().compare(None, None)
    with pytest.raises(NotImplementedError, match="made without a judge"):
        asyncio.run(SingleTurn(train=[], rewards=[lambda **_: [1.0]]).compare(None, None))


def finished(answer, prompt="x"):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
    return Episode(task=Task.from_row("e", {"prompt": "x"}), prompt=prompt, messages=messages, completion_ids=[1], ending="complete")


def run_judge(judge, **options):
    return asyncio.run(SingleTurn(train=[], judge=judge).compare(finished("a", **options), finished("b", **options)))


@pytest.mark.parametrize(
    ("returned", "expected"), [([0], 1.0), ([1], 0.0), ([-1], None), ((0,), 1.0), (np.array([1]), 0.0), ([np.int64(-1)], None)]
)
def test_a_verdict_is_a_preference(returned, expected):
    async def later(**_):
        return returned

    assert run_judge(lambda **_: returned) == expected
    assert run_judge(later) == expected


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([0, 1], "got 1 pair and returned 2 values"),
        ([], "returned 0 values"),
        (0, "returned 0"),
        (None, "returned None"),
        ([2], "returned 2"),
        ([-2], "returned -2"),
        ([True], "returned True"),
        ([0.9], r"returned 0.9"),
        ([None], "returned None"),
        (["1"], "returned '1'"),
    ],
)
def test_a_judge_returns_one_verdict_a_pair(returned, said):
    with pytest.raises(EnvironmentFailure, match=f"^judge <lambda> .*{said}.*; allowed: a list with 0 "):
        run_judge(lambda **_: returned)


def test_a_judge_gets_the_completions_in_the_form_of_the_prompt():
    seen = []

    def judge(prompts, completions):
        seen.append((prompts, completions))
        return [0]

    run_judge(judge)
    messages = [{"role": "user", "content": "x"}]
    run_judge(judge, prompt=messages)
    answers = [[{"role": "assistant", "content": text}] for text in "ab"]
    assert seen == [(["x"], [["a", "b"]]), ([messages], [answers])]


def test_with_a_judge_there_need_be_no_reward():
    environment = SingleTurn(train=[], judge=lambda **_: [0])
    assert asyncio.run(environment.score(finished("a"))) == Score(value=0.0)
    with pytest.raises(ValueError, match="at least one reward function, or a judge"):
        SingleTurn(train=[])
