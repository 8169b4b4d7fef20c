import time

import pytest

from agentrl.rewards.extract import answer_text, completion_text, last_box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("\\boxed{5} no, \\boxed{7}.", "7"),
        ("\\boxed{7} no, \\boxed{5", "7"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1}", "\\left\\{1"),
        ("\\fbox {a\\}b}", "a\\}b"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed{", None),
        ("\\boxed{}", None),
        ("5", None),
    ],
)
def test_last_box(text, box):
    assert last_box(text) == box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5", "5"),
        ("so\n\n  42  \n", "42"),
        ("the answer is 3", "3"),
        ("The final answer is: $x = 3.5$. I hope it is correct.", "$x = 3.5$"),
        ("Answer: **4**", "4"),
        ("answer:\n12", "12"),
        ("**4**", "4"),
        ("2+2\n#### 4\nand more words", "4"),
        ("The answer is 1.\n#### 2\n\\boxed{3}", "3"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("opened in the prompt \\boxed{1}</think>2", "2"),
        ("<think>\\boxed{1}", None),
        ("\\boxed{1", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_answer_text(text, answer):
    assert answer_text(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000,
        "\\boxed{" * 50_000 + "}" * 50_000,
        "answer" + " " * 500_000,
        "answer " * 100_000,
        "answer:" + "\n" * 500_000,
        "the answer a b c d " * 50_000,
        "{" * 500_000,
        "**a" * 200_000,
        "####" + " " * 500_000,
    ],
    ids=lambda text: text[:12],
)
def test_texts_made_to_take_long_take_no_time(text):
    started = time.process_time()
    answer_text(text)
    assert time.process_time() - started < 3  # the square of these lengths would take hours


def test_completion_text_takes_the_last_assistant_turn():
    messages = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "6"},
        {"role": "user", "content": "7"},
    ]
    assert completion_text(messages) == "6"
    assert completion_text(messages[:2]) == ""
    assert completion_text([]) == ""
    assert completion_text("8") == "8"
