import pytest

from agentrl.rewards.multiple_choice import gold_fault, grade, multiple_choice_reward

OPTIONS = ["Rome", "Paris", "New York", "Paris, Texas"]


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "[B]",
        "B.",
        "\\boxed{B}",
        "\\boxed{\\text{(B)}}",
        "\\boxed{\\textbf{B: Paris}}",
        "The answer is B.",
        "The answer is (B) Paris.",
        "Answer: B) Paris",
        "option B",
        "The correct option: B",
        "Paris",
        "\\boxed{\\text{paris}}",
    ],
)
def test_right(answer):
    assert grade(gold="B", answer=answer, options=OPTIONS).verdict == "correct"


@pytest.mark.parametrize(
    "answer",
    [
        "A",
        "A or B",
        "B or C",
        "B, C",
        "B and C",
        "B. or C.",
        "not B",
        "B: Rome",
        "E",
        "8",
        "Paris or Rome",
        "Paris, Texas",
        "I am not sure",
        "B" * 3000,
        "\\boxed{",
        "",
    ],
)
def test_wrong(answer):
    assert grade(gold="B", answer=answer, options=OPTIONS).verdict == "wrong"


def test_without_options_letters_are_labels():
    assert grade(gold="(C)", answer="C: because").verdict == "correct"
    assert grade(gold="C", answer="C: or B").verdict == "wrong"
    assert grade(gold="C", answer="3").verdict == "wrong"
    assert grade(gold="C", answer="Paris").verdict == "wrong"


def test_labels_may_be_numbers_and_texts_may_look_like_labels():
    assert grade(gold="2", answer="2", options={"1": "cat", "2": "dog"}).verdict == "correct"
    assert grade(gold="2", answer="dog", options={"1": "cat", "2": "dog"}).verdict == "correct"
    assert grade(gold="1", answer="2", options={"1": "2", "2": "3"}).verdict == "wrong"
    assert grade(gold="A", answer="same", options=["same", "same"]).verdict == "wrong"


def test_golds_are_options():
    assert gold_fault("b", OPTIONS) == ""
    assert gold_fault("Paris", OPTIONS) == ""
    assert gold_fault(" ") == "the gold is empty"
    assert "A, B, C, D" in gold_fault("E", OPTIONS)
    assert "a letter" in gold_fault("B or C")
    assert grade(gold="E", answer="E", options=OPTIONS).verdict == "unscorable"


def test_the_reward_takes_columns():
    values = multiple_choice_reward(
        prompts=["?"] * 3, completions=["B", "A", "B"], completion_ids=[[1]] * 3, answer=["B", "B", ""], options=[OPTIONS, None, None]
    )
    assert values == [1.0, 0.0, None]
    assert multiple_choice_reward(prompts=["?"], completions=["(B)"], completion_ids=[[1]], answer=["B"]) == [1.0]
