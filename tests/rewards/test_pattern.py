from __future__ import annotations

import logging
import time

import pytest

from agentrl.rewards.pattern import matches


def of(function, *texts):
    return function(prompts=[""] * len(texts), completions=list(texts), completion_ids=[[]] * len(texts))


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, [1.0, 1.0, 0.0, 0.0]),
        ({"how": "match"}, [1.0, 0.0, 0.0, 0.0]),
        ({"how": "fullmatch", "found": 0.5, "missing": -1}, [0.5, -1, -1, -1]),
        ({"pattern": "X", "ignore_case": True}, [0.0, 1.0, 1.0, 0.0]),
    ],
)
def test_what_is_found(options, values):
    assert of(matches(**{"pattern": r"\d+", **options}), "12", "x 12", "x", "") == values


def test_messages_and_other_letters():
    turn = [{"role": "assistant", "content": "\u00fcber \U0001f600"}]
    assert of(matches(r"\w+ \U0001f600", how="fullmatch"), turn, [{"role": "assistant", "content": None}]) == [1.0, 0.0]


def test_an_expression_that_backtracks_for_ever_is_unscorable(caplog):
    reward = matches("(a|aa)+b", how="fullmatch", timeout_s=0.05)
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        assert of(reward, "ab", "a" * 5000 + "c") == [1.0, None]
    assert time.perf_counter() - started < 5
    assert "given up on 5001 characters" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "("}, "does not compile"),
        ({"pattern": 5}, "quote it"),
        ({"pattern": "a", "how": "find"}, "search, match or fullmatch"),
        ({"pattern": "a", "timeout_s": 0}, "above 0"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        matches(**options)
