from __future__ import annotations

import random

import pytest

from agentrl.rewards.format import answer_format, tags, think_format


def messages(text):
    return [{"role": "assistant", "content": text}]


def of(function, *texts):
    return function(prompts=["p"] * len(texts), completions=list(texts), completion_ids=[[1]] * len(texts))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>\nso\n</think>\nfour", 1.0),
        ("<think></think>", 1.0),
        ("<think>a</think>b</think>", 1.0),
        (" <think>a</think>", 0.0),
        ("<think>a", 0.0),
        ("</think>a", 0.0),
        ("<think>a<think>b</think>", 0.0),
        ("<think>a</think><think>b</think>", 0.0),
        ("", 0.0),
    ],
)
def test_thinking(text, value):
    assert of(think_format, text, messages(text)) == [value, value]


@pytest.mark.trl
def test_thinking_is_what_trl_calls_so():
    theirs = pytest.importorskip("trl.rewards").think_format_reward
    stream = random.Random(0)
    pieces = ["<think>", "</think>", "<think", ">", "\n", "a", " ", "<", "/think>", "\r\n", "\u2028", "\u00e9", "<answer>"]
    texts = ["".join(stream.choices(pieces, k=stream.randrange(8))) for _ in range(4000)]
    texts += ["<think>" + text for text in texts]
    ours = of(think_format, *map(messages, texts))
    assert ours == theirs([messages(text) for text in texts])
    assert 500 < sum(ours) < len(texts) - 500


@pytest.mark.parametrize(
    ("text", "value", "share"),
    [
        ("<think>a</think><answer>4</answer>", 1.0, 1.0),
        ("\n<think>a</think>\n\n<answer>\n4</answer> ", 1.0, 1.0),
        ("<think>a</think>", 0.0, 0.5),
        ("<think>a</think> so <answer>4</answer>", 0.0, 1.0),
        ("<think>a</think><answer>4</answer>!", 0.0, 1.0),
        ("<answer>4</answer><think>a</think>", 0.0, 0.0),
        ("<think>a<answer>4</answer></think>", 0.0, 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0.0, 0.5),
        ("<think>a</think><answer><think></answer>", 0.0, 0.5),
        ("<think>a</think><answer>4", 0.0, 0.5),
        ("", 0.0, 0.0),
    ],
)
def test_tags(text, value, share):
    assert of(answer_format, text) == [value]
    assert of(tags(partial=True), text) == [share]


def test_other_tags():
    assert of(tags("plan"), "<plan>x</plan>", "<plan>x</plan> y") == [1.0, 0.0]
    assert of(tags(["a", "b-2"]), "<a></a><b-2></b-2>") == [1.0]


@pytest.mark.parametrize("names", ["", "a,a", "a b", "<a>", []])
def test_names_that_are_none_are_refused(names):
    with pytest.raises(ValueError, match="different tag names"):
        tags(names)


@pytest.mark.parametrize(
    "completion",
    [
        [],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "tool", "content": "<think>a</think>"}],
        [{"role": "assistant", "content": "<think>a</think>"}, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "4"}],
    ],
)
def test_the_last_assistant_turn_counts(completion):
    assert of(think_format, completion) == [0.0]


def test_messages_without_a_role_and_in_parts_are_read():
    assert of(think_format, [{"content": "<think>a</think>"}]) == [1.0]
    parts = [{"type": "text", "text": "<think>a"}, {"type": "image"}, {"type": "text", "text": "</think>"}]
    assert of(think_format, [{"role": "assistant", "content": parts}]) == [1.0]


def test_a_huge_text_takes_no_time():
    assert of(think_format, "<think>" * 200_000) == [0.0]
    assert of(answer_format, "<think>" + "<answer>" * 200_000) == [0.0]
