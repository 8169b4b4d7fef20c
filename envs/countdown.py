"""Countdown: combine the given numbers, each exactly once, into the target with + - * / and parentheses."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from agentrl.environment import Split
from agentrl.envs.procedural import Procedural
from agentrl.errors import ConfigError
from agentrl.registry import register
from agentrl.rewards.expression import evaluate
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.single_turn import SingleTurn

SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 1_000}


def solves(text: str, *, numbers: Sequence[int], target: int) -> bool:
    """Whether an expression uses exactly these numbers and comes to the target; `expression = target` is accepted too."""
    expression, equals, right = text.partition("=")
    try:
        result = evaluate(expression)
        told = evaluate(right).value if equals else Fraction(target)
    except ValueError:
        return False
    return result.value == told == target and sorted(result.numbers) == sorted(numbers)


def countdown_reward(
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    **_: Any,
) -> list[float]:
    """1 where the last box (or, without one, the whole answer) solves the task, else 0."""
    texts = [answer_text(completion_text(completion)) for completion in completions]
    rows = zip(texts, numbers, target, strict=True)
    return [float(text is not None and solves(text, numbers=given, target=goal)) for text, given, goal in rows]


def draw(stream: random.Random, *, numbers: int, largest: int) -> tuple[str, Mapping[str, Any]]:
    """One task that has a solution: numbers from 1 to `largest`, combined at random into a whole target from 1 to 999."""
    while True:
        given = [stream.randint(1, largest) for _ in range(numbers)]
        values = [Fraction(number) for number in given]
        while len(values) > 1:
            left, right = values.pop(stream.randrange(len(values))), values.pop(stream.randrange(len(values)))
            choices = [left + right, left - right, left * right] + ([left / right] if right else [])
            values.append(stream.choice(choices))
        if values[0].denominator == 1 and 1 <= values[0] <= 999 and values[0] not in given:
            break
    target = int(values[0])
    text = f"Make {target} from {', '.join(map(str, given))}."
    key = " ".join(map(str, sorted(given)))
    return key, {"prompt": [{"role": "user", "content": text}], "numbers": given, "target": target}


@register("countdown")
def countdown(numbers: int = 3, largest: int = 20) -> SingleTurn:
    """Reach a target from `numbers` numbers (2 to 6) between 1 and `largest` (2 to 100)."""
    if not 2 <= numbers <= 6 or not 2 <= largest <= 100:
        raise ConfigError(f"countdown: numbers must be 2 to 6 and largest 2 to 100, got {numbers} and {largest}")
    name = f"countdown/{numbers}/{largest}"
    make = partial(draw, numbers=numbers, largest=largest)
    train, held_out = (Procedural(make, split=split, size=SIZES[split], name=name) for split in ("train", "eval"))
    return SingleTurn(train=train, eval=held_out, rewards=[countdown_reward])
