"""Exact values of written arithmetic, without `eval`: whole numbers, `+ - * /` and parentheses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CHARACTERS = 400
"""A longer text is refused; within it every value stays small, as there are no powers."""

_SIGNS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/", "\N{MINUS SIGN}": "-"}
_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}
_APPLY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What an expression comes to, and the numbers that stand in it."""

    value: Fraction
    numbers: tuple[int, ...]
    """In the order in which they are written."""


def evaluate(text: str) -> Value:
    """Evaluate an expression such as `(4+6)*2/5`.

    Raises:
        ValueError: the text is not an expression (the message says why), or it divides by zero.
    Source: Dijkstra's shunting-yard algorithm; iterative, so that no nesting can exhaust the stack.
    """
    values: list[Fraction] = []
    waiting: list[str] = []
    numbers: list[int] = []
    after_operand = False
    for token in _tokens(text):
        if token.isdigit():
            _expect(not after_operand, f"an operator before {token}")
            numbers.append(int(token))
            values.append(Fraction(numbers[-1]))
            after_operand = True
        elif token == "(":
            _expect(not after_operand, "an operator before '('")
            waiting.append(token)
        elif token == ")":
            _expect(after_operand, "an operand before ')'")
            while waiting and waiting[-1] != "(":
                _reduce(values, waiting.pop())
            _expect(bool(waiting), "a '(' for every ')'")
            waiting.pop()
        else:
            operator = token if after_operand else {"-": "neg"}.get(token, "")
            _expect(bool(operator), f"an operand before {token!r}")
            while operator != "neg" and waiting and waiting[-1] != "(" and _PRECEDENCE[waiting[-1]] >= _PRECEDENCE[operator]:
                _reduce(values, waiting.pop())
            waiting.append(operator)
            after_operand = False
    _expect(after_operand, "an operand at the end")
    while waiting:
        _expect(waiting[-1] != "(", "a ')' for every '('")
        _reduce(values, waiting.pop())
    return Value(value=values[0], numbers=tuple(numbers))


def _tokens(text: str) -> list[str]:
    _expect(len(text) <= MAX_CHARACTERS, f"at most {MAX_CHARACTERS} characters")
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    tokens: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"expected a number, + - * / or a parenthesis at {text[at : at + 10]!r}")
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")


def _reduce(values: list[Fraction], operator: str) -> None:
    right = values.pop()
    if operator == "neg":
        values.append(-right)
        return
    left = values.pop()
    _expect(operator != "/" or right != 0, "a divisor other than zero")
    values.append(_APPLY[operator](left, right))
