"""Tiny programming tasks: functions of one line, described step by step, for models of any size."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.environment import Split
from agentrl.envs.procedural import Procedural

SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 1_000}
NUM_TESTS = 6
_NUMBER_NAMES, _TEXT_NAMES = ("ab", "xy", "mn", "pq"), ("st", "uv")
_LOOSE = 0
"""How tightly an expression binds: a sum or a difference."""
_TIGHT = 1
_WHOLE = 2
"""A name, a number, a call."""


@dataclass(frozen=True, slots=True)
class _Expression:
    text: str
    binding: int

    def inside(self, binding: int) -> str:
        """The text as part of another that binds like this."""
        return self.text if self.binding >= binding else f"({self.text})"


def tiny_tasks(split: Split) -> Procedural:
    """Tasks whose descriptions differ from split to split.

    Example: the prompt `f(a, b): a plus b, times 3`, the answer `(a+b)*3`.
    """
    return Procedural(draw, split=split, size=SIZES[split], name="code/tiny")


def draw(stream: random.Random) -> tuple[str, Mapping[str, Any]]:
    """One task: a description of one to three steps, the expression that does them, and tests made of that."""
    while True:
        words, expression, names, texts = _text_steps(stream) if stream.random() < 0.25 else _number_steps(stream)
        starter = f"def f({', '.join(names)}):\n    return "
        function = _function(starter + expression)
        inputs = [tuple(_value(stream, text=texts) for _ in names) for _ in range(NUM_TESTS)]
        outputs = [function(*values) for values in inputs]
        if len(set(outputs)) > 2 and any(output not in values for output, values in zip(outputs, inputs, strict=True)):
            break
    tests = [f"f({', '.join(map(repr, values))}) == {output!r}" for values, output in zip(inputs, outputs, strict=True)]
    prompt = f"f({', '.join(names)}): {words}"
    row = {
        "prompt": [{"role": "user", "content": prompt}],
        "entry": "f",
        "starter_code": starter,
        "tests": tests,
        "solution": expression,
    }
    return f"{''.join(names)} {words}", row


def _number_steps(stream: random.Random) -> tuple[str, str, tuple[str, ...], bool]:
    names = tuple(stream.choice(_NUMBER_NAMES))
    first, second = stream.sample(names, 2)
    words, expression = first, _Expression(first, _WHOLE)
    large, small = str(stream.randint(2, 20)), str(stream.randint(2, 9))
    others = stream.choice(([second], [second, large], [large, second], [small, second, large]))
    for number, other in enumerate(others):
        step, expression = _number_step(stream, expression, other)
        words += f", {step}" if number else f" {step}"
    return words, expression.text, names, False


def _number_step(stream: random.Random, before: _Expression, other: str) -> tuple[str, _Expression]:
    kind = stream.choice(("plus", "minus", "times", "at least", "at most"))
    if kind == "plus":
        return f"plus {other}", _Expression(f"{before.inside(_LOOSE)}+{other}", _LOOSE)
    if kind == "minus":
        return f"minus {other}", _Expression(f"{before.inside(_LOOSE)}-{other}", _LOOSE)
    if kind == "times":
        return f"times {other}", _Expression(f"{before.inside(_TIGHT)}*{other}", _TIGHT)
    function = "max" if kind == "at least" else "min"
    return f"{kind} {other}", _Expression(f"{function}({before.text},{other})", _WHOLE)


def _text_steps(stream: random.Random) -> tuple[str, str, tuple[str, ...], bool]:
    names = tuple(stream.choice(_TEXT_NAMES))
    first, second = stream.sample(names, 2)
    parts = [_text_part(stream, name) for name in (first, second)]
    (words, text), (other_words, other_text) = parts
    words, expression = f"{words} then {other_words}", f"{text}+{other_text}"
    if stream.random() < 0.5:
        count = stream.randint(2, 4)
        words, expression = f"{words}, {count} times", f"({expression})*{count}"
    return words, expression, names, True


def _text_part(stream: random.Random, name: str) -> tuple[str, str]:
    place = stream.randint(1, 3)
    return stream.choice(
        (
            (name, name),
            (f"{name} reversed", f"{name}[::-1]"),
            (f"{name} upper", f"{name}.upper()"),
            (f"first {place} of {name}", f"{name}[:{place}]"),
            (f"last {place} of {name}", f"{name}[-{place}:]"),
        )
    )


def _value(stream: random.Random, *, text: bool) -> Any:
    return "".join(stream.choice("abcdefgh") for _ in range(stream.randint(3, 6))) if text else stream.randint(-9, 20)


def _function(code: str) -> Any:
    space: dict[str, Any] = {}
    exec(code, space)  # our own expression
    return space["f"]
