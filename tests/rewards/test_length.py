from __future__ import annotations

import math

import pytest

from agentrl.rewards.length import cosine, soft_overlong


def of(function, *lengths, **columns):
    return function(prompts=[""] * len(lengths), completions=[""] * len(lengths), completion_ids=[[1] * n for n in lengths], **columns)


def test_dapos_punishment():
    assert of(soft_overlong(100, 20), 0, 80, 81, 90, 100, 101, 10_000) == pytest.approx([0, 0, -0.05, -0.5, -1, -1, -1])
    assert of(soft_overlong(100, 0), 100, 101) == [0.0, -1.0]
    assert of(soft_overlong(max_tokens=4, buffer=4), 0, 1, 4) == [0.0, -0.25, -1.0]


@pytest.mark.trl
def test_the_punishment_is_trls():
    theirs = pytest.importorskip("trl.rewards").get_soft_overlong_punishment
    for most, buffer in [(1, 1), (7, 3), (64, 0), (64, 64)]:
        ids = [[1] * length for length in range(70)]
        assert soft_overlong(most, buffer)(completion_ids=ids) == theirs(max_completion_len=most, soft_punish_cache=buffer)(ids)


@pytest.mark.parametrize(("most", "buffer"), [(0, 0), (10, 11), (10, -1), (10.0, 2), ("10", 2), (True, 1)])
def test_lengths_that_make_no_sense_are_refused(most, buffer):
    with pytest.raises(ValueError, match=r"got (max_tokens|buffer)"):
        soft_overlong(most, buffer)


def right(completion_ids, right, **_):
    return right


def test_a_short_right_answer_is_worth_most_and_a_short_wrong_one_least():
    reward = cosine(100, correct=right)
    values = of(reward, 0, 50, 99, right=[1.0, 1.0, 1.0])
    assert values == pytest.approx([1.0, 0.75, 0.5], abs=1e-3)
    assert of(reward, 0, 50, 99, right=[0.0, 0.0, 0.0]) == pytest.approx([-1.0, -0.75, -0.5], abs=1e-3)
    assert of(reward, 100, 500, right=[1.0, 0.0]) == [-1.0, -1.0]
    assert of(reward, 3, 5, right=[None, math.nan]) == [None, None]


def test_the_cosine_of_the_paper():
    reward = cosine(8, correct=right, correct_at_0=2, correct_at_max=1, wrong_at_0=-10, wrong_at_max=0, too_long=-10)
    for length in range(8):
        wave = 0.5 * (1 + math.cos(math.pi * length / 8))
        assert of(reward, length, length, right=[1, 0]) == pytest.approx([1 + wave, -10 * wave])


def test_correctness_is_by_default_that_of_the_math_verifier():
    reward = cosine(10)
    given = {"completions": ["\\boxed{4}", "\\boxed{5}"], "completion_ids": [[1], [1]], "answer": ["4", "4"]}
    good, bad = reward(prompts=["", ""], **given)
    assert good > 0.9
    assert bad < -0.9


def test_a_correctness_that_cannot_be_used_is_refused():
    for name in ("nothing", "agentrl.rewards.length:nothing", "agentrl.nothing:x"):
        with pytest.raises(ValueError, match="cannot be found"):
            cosine(10, correct=name)

    async def later(**_):
        return [1.0]

    with pytest.raises(ValueError, match="is async"):
        cosine(10, correct=later)
