import time

import pytest

from agentrl.envs.adapters.answers import found_answer


@pytest.mark.parametrize(
    ("text", "auto", "tags", "whole"),
    [
        ("<answer>a</answer> or <answer> b </answer>", "b", "b", "<answer>a</answer> or <answer> b </answer>"),
        ("I think\n\\boxed{7}", "7", None, "I think\n\\boxed{7}"),
        ("so\n#### 12", "12", None, "so\n#### 12"),
        ("first\nlast", "last", None, "first\nlast"),
        ("<think><answer>a</answer></think>b", "b", None, "b"),
        ("<think>never ends <answer>a</answer>", None, None, None),
        ("<answer>1 2\n3 4</answer>", "1 2\n3 4", "1 2\n3 4", "<answer>1 2\n3 4</answer>"),
        ("<answer> </answer>", None, None, "<answer> </answer>"),
        ("<answer>cut", "<answer>cut", None, "<answer>cut"),
        (" \n", None, None, None),
    ],
)
def test_the_answer_of_each_kind(text, auto, tags, whole):
    assert [found_answer(text, kind) for kind in ("auto", "tags", "text")] == [auto, tags, whole]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("<answer>a<answer>b</answer>", "a<answer>b"), ("<answer>a</answer><answer>b</answer><answer>c", "b"), ("</answer><answer>", None)],
)
def test_the_last_closed_tag_counts(text, answer):
    assert found_answer(text, "tags") == answer


def test_tags_that_never_close_take_no_time():
    started = time.process_time()
    assert found_answer("<answer>" * 50_000, "tags") is None
    assert time.process_time() - started < 1
