import pytest

from agentrl.rewards.exact import Spelling, exact_reward, gold_fault, grade


@pytest.mark.parametrize(
    ("gold", "answer", "ignore", "right"),
    [
        ("New York", "\\boxed{New York}", Spelling(), True),
        ("New York", "The answer is New  York.", Spelling(), True),
        ("New York", "New  York", Spelling(spaces=False), False),
        ("New York", "new york", Spelling(), False),
        ("New York", "new york", Spelling(case=True), True),
        ("Stra\N{LATIN SMALL LETTER SHARP S}e", "STRASSE", Spelling(case=True), True),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", Spelling(), True),
        ("don't", "dont", Spelling(), False),
        ("don't", "dont", Spelling(punctuation=True), True),
        ("the moon", "moon", Spelling(), False),
        ("the moon", "a moon", Spelling(articles=True), True),
        ("then", "n", Spelling(articles=True), False),
        ("a", "b", Spelling(), False),
    ],
)
def test_only_what_is_declared_does_not_matter(gold, answer, ignore, right):
    assert grade(gold=gold, answer=answer, ignore=ignore).verdict == ("correct" if right else "wrong")


def test_the_whole_answer_may_count():
    assert grade(gold="one\ntwo", answer="one\ntwo", whole=True).verdict == "correct"
    assert grade(gold="two", answer="one\ntwo", whole=True).verdict == "wrong"
    assert grade(gold="two", answer="one\ntwo").verdict == "correct"
    assert grade(gold="two", answer="\\boxed{").verdict == "wrong"


def test_a_gold_of_which_nothing_is_left_is_unscorable():
    assert gold_fault("x") == ""
    assert gold_fault(" ") == "the gold is empty"
    assert "nothing is left" in gold_fault("?!", ignore=Spelling(punctuation=True))
    assert grade(gold="?!", answer="?!", ignore=Spelling(punctuation=True)).verdict == "unscorable"


def test_the_reward_takes_columns():
    assert exact_reward(prompts=["?"] * 3, completions=["a", "b", "a"], completion_ids=[[1]] * 3, answer=["a", "a", ""]) == [1.0, 0.0, None]
