from __future__ import annotations

import random

import pytest

from agentrl.rewards.repetition import no_repetition, repetition


def of(function, *ids):
    return function(prompts=[""] * len(ids), completions=[""] * len(ids), completion_ids=list(ids))


def test_repeated_ngrams_are_penalized():
    assert of(repetition(2), [1, 2, 3, 4], [5, 5, 5, 5, 5]) == [0.0, -0.75]
    assert of(repetition(1, -2.0), [7, 7, 8, 8]) == [-1.0]
    assert of(no_repetition, [], [1], [1, 1], [1, 1, 1], [1, 1, 1, 1]) == [0.0, 0.0, 0.0, 0.0, -0.5]
    assert str(of(no_repetition, [1, 2, 3])) == "[0.0]"  # and not -0.0


def test_words_are_those_of_the_last_turn():
    reward = repetition(2, unit="words")
    turns = [{"role": "assistant", "content": "a b c"}, {"role": "tool", "content": "a b"}, {"role": "assistant", "content": "So so SO so"}]
    assert reward(completions=["", "a\u00a0b a  b", turns], completion_ids=[[], [], []]) == pytest.approx([0.0, -1 / 3, -2 / 3])


@pytest.mark.trl
def test_the_penalty_is_trls():
    theirs = pytest.importorskip("trl.rewards").get_repetition_penalty_reward
    stream = random.Random(1)
    ids = [[stream.randrange(4) for _ in range(stream.randrange(12))] for _ in range(500)]
    for size in (1, 2, 3, 5):
        assert of(repetition(size, -0.5), *ids) == pytest.approx(theirs(ngram_size=size, max_penalty=-0.5)(ids))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 2.0}, {"max_penalty": 0.1}, {"max_penalty": float("nan")}, {"unit": "letters"}])
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"got (size|max_penalty|unit)"):
        repetition(**wrong)
