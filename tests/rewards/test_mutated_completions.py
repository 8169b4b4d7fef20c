"""Whatever a model writes, a rule gives a number within its range, or None where it may."""

from __future__ import annotations

import random

import pytest

from agentrl.rewards.format import answer_format, tags, think_format
from agentrl.rewards.json_schema import fits, valid_json
from agentrl.rewards.language import language
from agentrl.rewards.length import cosine, soft_overlong
from agentrl.rewards.pattern import matches
from agentrl.rewards.repetition import no_repetition, repetition

SEEDS = [
    "<think>two and two</think><answer>4</answer>",
    '```json\n{"name": "Ada", "age": [36, null, {"a": 1.5e3}]}\n```',
    "The answer is \\boxed{\\frac{1}{2}}. So ist es, und nicht anders.",
    "a b c a b c a b c <tool_call>{}</tool_call> \u4f60\u597d \U0001f600 \ud800 \x00",
]
RULES = {
    "think": (think_format, 0, 1, False),
    "answer": (answer_format, 0, 1, False),
    "share": (tags("think,answer", partial=True), 0, 1, False),
    "json": (valid_json, 0, 1, False),
    "schema": (fits({"type": "object", "required": ["name"]}, parses=0.5), 0, 1, False),
    "overlong": (soft_overlong(20, 10), -1, 0, False),
    "cosine": (cosine(20, correct=think_format), -1, 1, False),
    "repetition": (no_repetition, -1, 0, False),
    "words": (repetition(2, unit="words"), -1, 0, False),
    "pattern": (matches("(?s)a.*b|4$"), 0, 1, True),
    "language": (language("en,de"), 0, 1, True),
}


def mutated(stream):
    letters = list(stream.choice(SEEDS))
    for _ in range(stream.randrange(6)):
        at, end = sorted(stream.randrange(len(letters) + 1) for _ in range(2))
        match stream.randrange(4):
            case 0:
                del letters[at:end]
            case 1:
                letters[at:at] = letters[at:end] * stream.randrange(3)
            case 2:
                letters[at:at] = stream.choice(["<think>", "</think>", "{", "}", "```", "\n", "NaN", '"', "\\", "[", "\u202e", "9" * 30])
            case 3:
                letters[at:end] = reversed(letters[at:end])
    return "".join(letters)


def completion(stream):
    text = mutated(stream)
    match stream.randrange(6):
        case 0:
            return [{"role": "assistant", "content": text}]
        case 1:
            return [{"role": "assistant", "content": None, "tool_calls": [{}]}, {"role": "tool", "content": text}]
        case 2:
            return [{"role": "tool", "content": text}, {"content": [{"type": "text", "text": text}, "odd", {"type": "image"}]}]
        case 3:
            return []
    return text


@pytest.mark.parametrize("name", RULES)
def test_ten_thousand_completions(name):
    rule, least, most, may_be_none = RULES[name]
    stream = random.Random(f"mutated/{name}")
    completions = [completion(stream) for _ in range(10_000)]
    ids = [[stream.randrange(5) for _ in range(stream.randrange(30))] for _ in completions]
    values = rule(prompts=["p"] * len(ids), completions=completions, completion_ids=ids)
    known = [value for value in values if value is not None]
    assert len(values) == len(completions)
    assert may_be_none or len(known) == len(values)
    assert all(isinstance(value, float) and least <= value <= most for value in known)
    assert len(set(known)) > 1
