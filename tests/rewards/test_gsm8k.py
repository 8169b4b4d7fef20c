import pytest

from agentrl.rewards.gsm8k import gold_fault, grade, gsm8k_reward

GOLD = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = 72.\n#### 72"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("She sold 72.\n#### 72", "correct"),
        ("so \\boxed{72}", "correct"),
        ("The answer is 72 clips.", "correct"),
        ("#### 72.0", "correct"),
        ("#### $72", "correct"),
        ("#### \\frac{144}{2}", "correct"),
        ("#### 72 or 73", "wrong"),
        ("#### 720", "wrong"),
        ("#### -72", "wrong"),
        ("72 was the number in May", "wrong"),
        ("", "wrong"),
    ],
)
def test_the_number_decides(answer, verdict):
    assert grade(gold=GOLD, answer=answer).verdict == verdict


def test_golds_are_numbers():
    assert gold_fault(GOLD) == ""
    assert gold_fault("1,234") == ""
    assert gold_fault("So it is 72.\n####") == "the gold is empty"
    assert "not a number" in gold_fault("#### x+1")
    assert "not a number" in gold_fault("no mark, 72")
    assert grade(gold="#### many", answer="72").verdict == "unscorable"


def test_the_reward_takes_columns():
    values = gsm8k_reward(prompts=["?"] * 3, completions=["72", "#### 71", "72"], completion_ids=[[1]] * 3, answer=[GOLD, GOLD, "####"])
    assert values == [1.0, 0.0, None]
