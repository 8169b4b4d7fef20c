"""Single formulas, read by the parser under math-verify and compared by value.

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

from agentrl.rewards.math_strict import refusal, with_bars, with_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_DIGITS = 20_000
"""Most decimal digits that a number in the course of a comparison may have; 2006! has 5,756."""
NUM_POINTS = 6
"""Points at which formulas with symbols are compared."""
MAX_REACH = 10**6
MAX_TERMS = 10_000
"""Most terms of a sum or product that is written out."""
DECIMAL_TOLERANCE = Fraction(1, 10**6)
"""Largest relative difference where one side is a written decimal."""

_EXACT_TOLERANCE = Fraction(1, 10**60)
_WRITTEN_TOLERANCE = Fraction(1, 10**12)
"""Where both sides are written decimals: they are read with 15 digits."""
_PRECISION = 80
_EAGER = re.compile(r"\\(?:[dt]?binom|choose|gcd|lcm|det)(?![A-Za-z])")
_NUMBERS_SIDE_BY_SIDE = re.compile(r"(?<![_^\d.])[\d.]+ \d")
_LARGE_LITERAL = re.compile(r"\d{4,}")


class Unparsed(ValueError):
    """The text is not a formula that can be read as a whole."""


class TooLarge(ValueError):
    """The formula could not be evaluated in reasonable time and memory."""


@cache
def _parser() -> Any:
    """The parser that math-verify is built on, asked directly for the whole text or nothing.

    math-verify's own `parse` would strip quotes, units and dots before, fold `X` and `x` into one, and fall back to a part of the text.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy  # type: ignore[import-untyped]
    from math_verify.grader import should_treat_as_complex  # type: ignore[import-untyped]

    conversion = ConversionConfig(lowercase_symbols=False)

    def read(text: str) -> Any:
        real = not should_treat_as_complex(text)
        return latex2sympy(text, is_real=real, convert_degrees=True, normalization_config=None, conversion_config=conversion)

    return read


@lru_cache(maxsize=512)
def formula(text: str) -> Any:
    """A sympy object for a normalized text. Raises `Unparsed` or `TooLarge`."""
    text = with_bars(with_names(text))
    if _NUMBERS_SIDE_BY_SIDE.search(text):
        raise Unparsed(f"cannot read {text!r}: numbers stand side by side")
    if reason := refusal(text):
        raise Unparsed(f"cannot read {text!r}: {reason}")
    if _EAGER.search(text) and ("^" in text or "!" in text or _LARGE_LITERAL.search(text)):
        raise TooLarge(f"{text!r} is evaluated while it is read")
    try:
        found = _parser()(text)
    except (MemoryError, RecursionError):
        raise TooLarge(f"{text!r} nests too deeply") from None
    except Exception:  # it raises plain ones, and whatever sympy makes of their pieces
        raise Unparsed(f"cannot read {text!r}") from None
    if _log10(found) > MAX_DIGITS:
        raise TooLarge(f"{text!r} has more than {MAX_DIGITS} digits")
    return found


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
    if expression.is_Rational:
        return float(abs(expression)) if digits < 300 else math.inf
    return 10**digits if digits < 300 else math.inf


def equal(gold: Any, answer: Any) -> bool:
    """Whether two sympy objects have the same value for all values of their symbols.

    Exact values must agree to 60 digits at random points of both signs (an identity of polynomials or elementary functions that holds
    there holds), rational numbers altogether. Where one side alone is a written decimal, they may differ by `DECIMAL_TOLERANCE`.
    """
    import sympy

    if gold == answer:
        return True
    if isinstance(gold, sympy.MatrixBase) or isinstance(answer, sympy.MatrixBase):
        both = isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase)
        return both and gold.shape == answer.shape and all(map(equal, gold, answer))
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return _verified(gold, answer)
    tolerance = _tolerance(gold, answer)
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
    tolerance = _tolerance(gold, answer)
    if len(ratios) < 3 or any(not _close(ratios[0], ratio, tolerance) for ratio in ratios[1:]):
        return False
    return not positive or bool(ratios[0].is_real and ratios[0] > 0)


def _tolerance(gold: Any, answer: Any) -> Fraction:
    import sympy

    decimals = sum(bool(expression.has(sympy.Float)) for expression in (gold, answer))
    return (_EXACT_TOLERANCE, DECIMAL_TOLERANCE, _WRITTEN_TOLERANCE)[decimals]


def evaluate_once(expression: Any) -> None:
    """Do with a gold formula what every comparison with it does, to see that it can be done."""
    import sympy

    if isinstance(expression, sympy.Expr):
        _at_points(expression)


def _verified(gold: Any, answer: Any) -> bool:
    from math_verify import verify  # type: ignore[import-untyped]

    return bool(verify(gold, answer, strict=True, timeout_seconds=None))


def _at_points(*expressions: Any) -> list[list[Any]]:
    """Values of the expressions at the same points, as numbers of 80 digits; one point is enough where there are no symbols."""
    import sympy

    names = sorted({symbol.name for expression in expressions for symbol in expression.free_symbols})
    whole = any(expression.has(sympy.Sum, sympy.Product) for expression in expressions)  # up to a bound that is a whole number
    stream = random.Random(len(names))
    scales = [1] * (NUM_POINTS if names else 1)
    if names and any(map(_has_bends, expressions)):
        scales += [_reach(expressions)] * NUM_POINTS
    rows: list[list[Any]] = []
    for at, scale in enumerate(scales):
        point = {name: _coordinate(stream, scale=scale, whole=whole, negative=at % NUM_POINTS >= 3 and not whole) for name in names}
        rows.append([_value(expression, point) for expression in expressions])
    return rows


def _coordinate(stream: random.Random, *, scale: int, whole: bool, negative: bool) -> Fraction:
    if whole:
        return Fraction(stream.randint(2, 40))
    return Fraction(stream.randint(101, 997), 331) * scale * (-1 if negative and stream.random() < 0.6 else 1)


def _has_bends(expression: Any) -> bool:
    """Whether an expression may be one formula here and another there, as `|x - 100|` is."""
    import sympy

    bent = (sympy.Abs, sympy.floor, sympy.ceiling, sympy.sign, sympy.Max, sympy.Min, sympy.Mod, sympy.Piecewise)
    roots = (power for power in expression.atoms(sympy.Pow) if power.base.free_symbols and not power.exp.is_Integer)
    return bool(expression.has(*bent)) or any(True for _ in roots)


def _reach(expressions: Sequence[Any]) -> int:
    """How far out to look for bends: beyond every constant."""
    import sympy

    constants = [abs(number) for expression in expressions for number in expression.atoms(sympy.Number) if number.is_finite]
    return min(MAX_REACH, 2 + int(max(constants, default=0)))


def _value(expression: Any, point: Mapping[str, Fraction]) -> Any:
    """Raises `Unparsed` where sympy cannot tell; of a gold that is noticed before any answer is compared with it."""
    try:
        return _evaluated(expression, point)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # sympy raises whatever its parts do
        raise Unparsed(f"{expression} cannot be evaluated: {type(error).__name__}") from None


def _evaluated(expression: Any, point: Mapping[str, Fraction]) -> Any:
    import sympy

    exact = {symbol: sympy.Rational(*point[symbol.name].as_integer_ratio()) for symbol in expression.free_symbols}
    exact |= {symbol: sympy.I for symbol in exact if symbol.name == "i"}
    value = expression.subs(exact).doit()
    return value if value.is_Rational else value.evalf(_PRECISION)


def _is_number(value: Any) -> bool:
    """Whether a value came out as a number, real or complex; an integral or a limit that could not be evaluated did not."""
    if not value.is_number or value.is_finite is False or value.has(*_undefined()):
        return False
    return all(part.is_Number for part in value.as_real_imag())


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
    difference, *sizes = (abs(value).evalf(_PRECISION) for value in (gold - answer, gold, answer))
    if not all(value.is_Float or value.is_Rational for value in (difference, *sizes)):
        return None
    return bool(difference * tolerance.denominator <= max(sizes) * tolerance.numerator)
