"""Single formulas, parsed by math-verify and compared by value.

math-verify (and sympy under it) is imported at the first formula that needs it, which takes most of a second. Its own time-outs are
off: this runs in worker processes that the parent kills. What is known to be too large to evaluate is refused before.
"""

from __future__ import annotations

import logging
import math
import random
import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_DIGITS = 20_000
"""Most decimal digits that a number in the course of a comparison may have; 2006! has 5,756."""
MAX_TERMS = 10_000
"""Most terms of a sum or product that is written out."""
DECIMAL_TOLERANCE = Fraction(1, 10**6)
"""Largest relative difference where one side is a written decimal."""

_EXACT_TOLERANCE = Fraction(1, 10**60)
_PRECISION = 80
_EAGER = re.compile(r"\\(?:[dt]?binom|choose|gcd|lcm|det)(?![A-Za-z])")
_UNREADABLE = re.compile(r"!!|\$|\\$|(?<![_^\d.])[\d.]+ \d")
"""Double factorials and numbers side by side, which math-verify reads as something else."""
_LARGE_LITERAL = re.compile(r"\d{4,}")


class Unparsed(ValueError):
    """The text is not a formula that can be read as a whole."""


class TooLarge(ValueError):
    """The formula could not be evaluated in reasonable time and memory."""


@cache
def _parser() -> Any:
    """math-verify's `parse`, whole text or nothing: no box search, no unit stripping, no falling back to a number inside."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
    from math_verify import LatexExtractionConfig, parse  # type: ignore[import-untyped]

    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    target = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=spelling)

    def read(text: str) -> list[Any]:
        found = parse(f"${text}$", [target], fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None)
        return list(found)

    return read


@lru_cache(maxsize=512)
def formula(text: str) -> Any:
    """A sympy object for a normalized text. Raises `Unparsed` or `TooLarge`."""
    if _UNREADABLE.search(text):
        raise Unparsed(f"cannot read {text!r}")
    if _EAGER.search(text) and ("^" in text or "!" in text or _LARGE_LITERAL.search(text)):
        raise TooLarge(f"{text!r} is evaluated while it is read")
    found = _parser()(text)
    if len(found) != 1:
        raise Unparsed(f"cannot read {text!r}")
    if _log10(found[0]) > MAX_DIGITS:
        raise TooLarge(f"{text!r} has more than {MAX_DIGITS} digits")
    return found[0]


def constant(value: Fraction, *, decimal: bool) -> Any:
    """A sympy number; a written decimal is one that `equal` allows a tolerance for."""
    import sympy  # type: ignore[import-untyped]

    exact = sympy.Rational(*value.as_integer_ratio())
    return sympy.Float(exact, _PRECISION) if decimal else exact


def _log10(expression: Any) -> float:
    """Upper estimate of the decimal digits before the point of anything that evaluating the expression makes."""
    import sympy

    if isinstance(expression, sympy.MatrixBase):
        return max((_log10(element) for element in expression), default=0.0)
    if isinstance(expression, sympy.Rational):
        return math.log10(max(abs(expression.p), 1)) + math.log10(expression.q)
    parts = [_log10(part) for part in getattr(expression, "args", ())]
    if isinstance(expression, sympy.Pow | sympy.exp):
        base = parts[0] if isinstance(expression, sympy.Pow) else 0.5
        return max(0.3, base) * _power_of_ten(parts[-1], expression.args[-1])
    if isinstance(expression, sympy.factorial | sympy.factorial2 | sympy.gamma):
        size = _power_of_ten(parts[0], expression.args[0])
        return size * max(1.0, parts[0])
    if isinstance(expression, sympy.Sum | sympy.Product):
        terms = max((_log10(limit) for _, *limits in expression.limits for limit in limits), default=0.0)
        return math.inf if terms > math.log10(MAX_TERMS) + 1 else sum(parts) * (10**terms if isinstance(expression, sympy.Product) else 1)
    if isinstance(expression, sympy.Mul):
        return sum(parts)
    return max(parts, default=0.5) + math.log10(max(len(parts), 1))


def _power_of_ten(digits: float, expression: Any) -> float:
    """Upper estimate of an exponent's absolute value."""
    if expression.is_Integer:
        return float(abs(expression)) if digits < 300 else math.inf
    return 10**digits if digits < 300 else math.inf


def equal(gold: Any, answer: Any) -> bool:
    """Whether two sympy objects have the same value for all values of their symbols.

    Exact values must agree to 60 digits at random points of both signs (an identity of polynomials or elementary functions that holds
    there holds), rational numbers altogether; a written decimal may differ by `DECIMAL_TOLERANCE`.
    """
    import sympy

    if gold == answer:
        return True
    if isinstance(gold, sympy.MatrixBase) or isinstance(answer, sympy.MatrixBase):
        both = isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase)
        return both and gold.shape == answer.shape and all(map(equal, gold, answer))
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return _verified(gold, answer)
    tolerance = DECIMAL_TOLERANCE if gold.has(sympy.Float) or answer.has(sympy.Float) else _EXACT_TOLERANCE
    compared = [_close(left, right, tolerance) for left, right in _at_points(gold, answer)]
    if all(result is None for result in compared):
        return _verified(gold, answer)
    return all(result is not False for result in compared)


def proportional(gold: Any, answer: Any, *, positive: bool) -> bool:
    """Whether one expression is a constant multiple (other than 0) of another, so that `gold = 0` and `answer = 0` say the same."""
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)) or not (gold.free_symbols and answer.free_symbols):
        return False
    points = [pair for pair in _at_points(gold, answer) if all(_is_number(value) and value != 0 for value in pair)]
    ratios = [left / right for left, right in points]
    tolerance = DECIMAL_TOLERANCE if gold.has(sympy.Float) or answer.has(sympy.Float) else _EXACT_TOLERANCE
    if len(ratios) < 3 or any(not _close(ratios[0], ratio, tolerance) for ratio in ratios[1:]):
        return False
    return not positive or bool(ratios[0].is_real and ratios[0] > 0)


def _verified(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, strict=True, timeout_seconds=None))


def _at_points(*expressions: Any) -> list[list[Any]]:
    """Values of the expressions at the same points, as numbers of 80 digits; one point is enough where there are no symbols."""
    names = sorted({symbol.name for expression in expressions for symbol in expression.free_symbols})
    stream = random.Random(len(names))
    rows: list[list[Any]] = []
    for at in range(6 if names else 1):
        point = {name: Fraction(stream.randint(101, 997), 331) * (-1 if at >= 3 and stream.random() < 0.6 else 1) for name in names}
        rows.append([_value(expression, point) for expression in expressions])
    return rows


def _value(expression: Any, point: Mapping[str, Fraction]) -> Any:
    import sympy

    exact = {symbol: sympy.Rational(*point[symbol.name].as_integer_ratio()) for symbol in expression.free_symbols}
    exact |= {symbol: sympy.I for symbol in exact if symbol.name == "i"}
    value = expression.subs(exact).doit()
    return value if value.is_Rational else value.evalf(_PRECISION)


def _is_number(value: Any) -> bool:
    return bool(value.is_number and value.is_finite is not False and value.is_comparable is not None and not value.has(*_undefined()))


@cache
def _undefined() -> Sequence[Any]:
    import sympy

    return (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)


def _close(gold: Any, answer: Any, tolerance: Fraction) -> bool | None:
    """None where neither side has a value."""
    known = _is_number(gold), _is_number(answer)
    if not all(known):
        return None if not any(known) and gold != answer else bool(gold == answer)
    if gold.is_Rational and answer.is_Rational:
        return bool(gold == answer)
    difference, size = abs(gold - answer), max(abs(gold), abs(answer))
    return bool(difference * tolerance.denominator <= size * tolerance.numerator)
