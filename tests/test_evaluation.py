from __future__ import annotations

import itertools

import pytest
from fakes import make_group

from agentrl.errors import RunCannotLearn
from agentrl.evaluation import pass_at_k, summarize


@pytest.mark.parametrize(("total", "right", "k"), [(4, 0, 2), (4, 1, 2), (5, 3, 2), (6, 2, 4), (3, 3, 3)])
def test_pass_at_k_equals_enumeration(total, right, k):
    outcomes = [True] * right + [False] * (total - right)
    draws = list(itertools.combinations(outcomes, k))
    assert pass_at_k(total, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_unscorable_rollouts_are_outside_the_mean():
    groups = [make_group(0, [1.0, None]), make_group(1, [0.0, 1.0])]
    result = summarize(groups, samples=2)
    assert result.mean == pytest.approx(0.75)
    assert result.unscorable == 1
    assert result.pass_at == {1: pytest.approx(0.75), 2: pytest.approx(1.0)}
    assert result.interval[0] < 0.75 < result.interval[1]


def test_nothing_scorable_is_an_error():
    with pytest.raises(RunCannotLearn, match="fake failure"):
        summarize([make_group(0, [None])], samples=1)
