"""What the small model is warmed up on: conversations in every form that our environments use, by a careless demonstrator.

The demonstrator always writes the right form and is often wrong, in ways that a person would recognize: it forgets carries, answers
before it has looked everything up, or takes the first expression that comes near. Imitating it gives a model that has seen right
answers, prefers wrong ones, and so has something to learn by reinforcement. Only training tasks are shown, never held-out ones.

A further format is one more function in `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from agentrl.llm import Message
from agentrl.registry import load

if TYPE_CHECKING:
    import random

CARRIES_FORGOTTEN = 0.75
"""Share of carries that the demonstrator drops."""
SLIPS = 0.05
"""Share of sums in which one digit is off by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation to imitate: its assistant turns are learned."""

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    plain: tuple[str, str] | None = None
    """Instead of messages: a prompt and its completion, without a chat template."""


Formats = Mapping[str, tuple["Callable[[random.Random], Example]", int]]
"""Name -> a format, and how many of it there are in a training step."""


@cache
def _tasks(spec: str) -> Sequence[Mapping[str, Any]]:
    rows = load(spec)().tasks("train")
    assert isinstance(rows, Sequence)
    return rows


def _boxed(value: object) -> str:
    return f"\\boxed{{{value}}}"


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def careless_sum(a: int, b: int, stream: random.Random) -> int:
    """Column by column, dropping most carries; right for about three sums of two digits in ten."""
    total, carry, place = 0, 0, 1
    while a or b or carry:
        column = a % 10 + b % 10 + carry
        carry = int(column >= 10 and stream.random() >= CARRIES_FORGOTTEN)
        total += column % 10 * place
        a, b, place = a // 10, b // 10, place * 10
    if stream.random() < SLIPS:
        total = max(0, total + stream.choice((-1, 1)))
    return total


def sums(stream: random.Random) -> Example:
    """Two-digit addition: the tasks of the quickstart."""
    prompt = stream.choice(_tasks("agentrl.envs.arithmetic:arithmetic"))["prompt"]
    a, b = map(int, re.findall(r"\d+", prompt[0]["content"]))
    return Example(messages=[*prompt, _assistant(_boxed(careless_sum(a, b, stream)))])


def plain_sums(stream: random.Random) -> Example:
    """The same tasks without a chat template: `57+26=` and then the number alone."""
    prompt = stream.choice(_tasks("agentrl.envs.arithmetic:arithmetic"))["prompt"]
    a, b = map(int, re.findall(r"\d+", prompt[0]["content"]))
    return Example(plain=(f"{a}+{b}=", str(careless_sum(a, b, stream))))


def other_arithmetic(stream: random.Random) -> Example:
    """One to three digits, all operators; the form counts, and the later digits are guessed half of the time."""
    row = stream.choice(_tasks(f"agentrl.envs.arithmetic:arithmetic?ops=add,sub,mul&digits={stream.randint(1, 3)}"))
    answer = row["answer"]
    guess = "".join(str(stream.randrange(10)) for _ in answer[1:])
    return Example(messages=[*row["prompt"], _assistant(_boxed(stream.choice((answer, answer[0] + guess))))])


def countdown(stream: random.Random) -> Example:
    """An expression for the target: the nearest of a few made at random."""
    row = stream.choice(_tasks("agentrl.envs.countdown:countdown"))
    tries = [_random_expression(row["numbers"], stream) for _ in range(8)]
    _, text = min(tries, key=lambda value_and_text: abs(value_and_text[0] - row["target"]))
    return Example(messages=[*row["prompt"], _assistant(_boxed(text))])


def _random_expression(numbers: Sequence[int], stream: random.Random) -> tuple[Fraction, str]:
    parts = [(Fraction(number), str(number)) for number in stream.sample(list(numbers), len(numbers))]
    while len(parts) > 1:
        at = stream.randrange(len(parts) - 1)
        (left, left_text), (right, right_text) = parts[at : at + 2]
        sign = stream.choice("+-*/" if right else "+-*")
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[sign]
        text = f"{left_text}{sign}{right_text}"
        parts[at : at + 2] = [(value, f"({text})" if len(parts) > 2 else text)]
    return parts[0]


def _schema(name: str, description: str, parameters: Mapping[str, str]) -> Mapping[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    function = {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }
    return {"type": "function", "function": function}


TOOLS = (
    _schema("add", "Add two numbers.", {"a": "integer", "b": "integer"}),
    _schema("lookup", "Count an item in stock.", {"item": "string"}),
)
"""As the `lookup` environment offers them."""


def _calls(*calls: tuple[str, Mapping[str, Any]]) -> Message:
    tool_calls = [{"type": "function", "function": {"name": name, "arguments": dict(arguments)}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def _result(value: object) -> Message:
    return {"role": "tool", "content": str(value)}


def lookup(stream: random.Random) -> Example:
    """Tools called in turn, then the answer; two times in three something is left out."""
    row = stream.choice(_tasks(f"agentrl.envs.lookup:Lookup?items={stream.randint(1, 2)}"))
    stock, asked = row["stock"], row["asked"]
    messages: list[Message] = [{"role": "user", "content": row["prompt"]}]
    care = stream.random()
    seen = asked if care >= 0.2 else asked[:1]
    if len(seen) == 2 and stream.random() < 0.2:
        messages += [_calls(*(("lookup", {"item": item}) for item in seen)), *(_result(stock[item]) for item in seen)]
    else:
        for item in seen:
            messages += [_calls(("lookup", {"item": item})), _result(stock[item])]
    counts = [stock[item] for item in seen]
    answer = counts[0]
    if len(counts) == 2 and care < 0.6:
        answer = careless_sum(counts[0], counts[1], stream)
    elif len(counts) == 2:
        answer = sum(counts)
        messages += [_calls(("add", {"a": counts[0], "b": counts[1]})), _result(answer)]
    return Example(messages=[*messages, _assistant(_boxed(answer))], tools=TOOLS)


def guess(stream: random.Random) -> Example:
    """A number guessed by hints, several turns without tools; the hints are forgotten half of the time."""
    largest = stream.choice((10, 20, 50, 100))
    low, high, secret = 1, largest, stream.randint(1, largest)
    messages: list[Message] = [{"role": "user", "content": f"Guess my number from 1 to {largest}."}]
    for _ in range(6):
        number = stream.randint(low, high) if stream.random() < 0.5 else stream.randint(1, largest)
        messages.append(_assistant(_boxed(number)))
        if number == secret:
            break
        low, high = (max(low, number + 1), high) if number < secret else (low, min(high, number - 1))
        messages.append({"role": "user", "content": "higher" if number < secret else "lower"})
    if messages[-1]["role"] == "user":
        messages.pop()
    return Example(messages=messages)


FORMATS: Formats = {
    "sums": (sums, 96),
    "plain_sums": (plain_sums, 16),
    "other_arithmetic": (other_arithmetic, 16),
    "countdown": (countdown, 16),
    "lookup": (lookup, 16),
    "guess": (guess, 8),
}
"""Name -> the format and how many of it there are in a training step."""
