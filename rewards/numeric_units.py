"""Numbers with units: `9.8 m/s^2`, `35 cm`. Another unit is wrong, unless it is known to be the same quantity.

Units are converted by `pint`, exactly, where it is installed (`pip install agentrl[units]`); without it a unit is only the same as itself
under its other names, such as `centimeters` and `cm`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from agentrl.reward_call import required
from agentrl.rewards.extract import answer_text, completion_text
from agentrl.rewards.grades import Grade
from agentrl.rewards.math_text import Number, normalize, parse_number, unit_name

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CHARACTERS = 200
"""A longer answer is no quantity."""
TOLERANCE = 1e-6
"""Largest relative difference where one side is a written decimal."""

_QUANTITY = re.compile(
    r"(?P<number>[-+]? ?(?:\\frac ?\{ ?[\d,]+ ?\} ?\{ ?[\d,]+ ?\}|[\d,]*\.?\d+\.?)"
    r"(?: ?(?:\\times|\\cdot|\*) ?10\^\{-?\d{1,4}\}|[eE][-+]?\d{1,4}(?![A-Za-z])|/\d+| ?\\%)?)"
    r"(?: ?(?P<unit>[^\d\s].*))?"
)
_TEXT = re.compile(r"\\text ?\{ ?([^{}]*?) ?\}")
_BELOW = re.compile(r"\\frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
_DEGREES = re.compile(r" ?\^ ?\{? ?\\circ ?\}?| ?\\degree")
_MONEY = re.compile(r"([-+]?) ?\\\$ ?(?=[\d.])")
_FACTOR = re.compile(r"([*/]?)(?:(square|sq|cubic)\s+)?([A-Za-z\u00b5\u03bc\u03a9\u00c5$]+)\.?(?:\^\{?\(?(-?\d)\)?\}?)?(\s*)")
_POWERS = {"square": 2, "sq": 2, "cubic": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number and its unit."""

    number: Number
    unit: tuple[tuple[str, int], ...]
    """Names and exponents, sorted; none for a pure number."""


@lru_cache(maxsize=1024)
def parse_quantity(text: str) -> Quantity | None:
    """Read a text that is one quantity and nothing else."""
    if len(text) > MAX_CHARACTERS:
        return None
    text = _MONEY.sub(r"\1", plain := normalize(text))
    match = _QUANTITY.fullmatch(text)
    number = parse_number(match["number"]) if match else None
    if match is None or number is None:
        return None
    unit = _unit(match["unit"] or "")
    if plain != text and unit is not None:
        unit = _unit("$") if not unit else None
    return None if unit is None else Quantity(number=number, unit=unit)


def _unit(text: str) -> tuple[tuple[str, int], ...] | None:
    text = _BELOW.sub(r"\1/\2", _DEGREES.sub(" deg", _TEXT.sub(r" \1 ", text)))
    text = re.sub(r"/\s*\(([^()]*)\)", lambda found: "/" + found[1].replace("*", " "), text)
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\", "").replace(" per ", "/").strip()
    text = re.sub(r"\s*([*/^])\s*", r"\1", text)
    exponents: dict[str, int] = {}
    at, below = 0, 1
    while at < len(text):
        factor = _FACTOR.match(text, at)
        if factor is None:
            return None
        operator, power, name, exponent, _ = factor.groups()
        below = -1 if operator == "/" else 1 if operator == "*" else below
        known = unit_name(name)
        exponents[known] = exponents.get(known, 0) + below * (_POWERS[power.lower()] if power else int(exponent or 1))
        at = factor.end()
    return tuple(sorted((name, exponent) for name, exponent in exponents.items() if name and exponent))


def grade(*, gold: str, answer: str, tolerance: float = TOLERANCE) -> Grade:
    """Grade a quantity.

    Args:
        gold: a number with or without a unit.
        answer: what a model wrote. It must have a unit where the gold has one; where the gold has none, its unit is not looked at.
        tolerance: largest relative difference where one side is a written decimal; other numbers must be equal.
    """
    said = answer_text(answer)
    if reason := gold_fault(gold):
        return Grade(verdict="unscorable", reason=reason, answer=said)
    expected = parse_quantity(answer_text(gold) or "")
    given = parse_quantity(said) if said is not None else None
    assert expected is not None
    if given is None:
        return Grade(verdict="wrong", reason="the answer is no number with a unit", answer=said)
    factor = _factor(given.unit, expected.unit) if expected.unit else Fraction(1)
    if factor is None:
        units = [" ".join(f"{name}^{power}" if power != 1 else name for name, power in one.unit) or "none" for one in (expected, given)]
        return Grade(verdict="wrong", reason=f"the unit is {units[1]}, not {units[0]}", answer=said)
    values = given.number.value * factor, expected.number.value
    allowed = Fraction(repr(tolerance)) * max(map(abs, values))  # as it is written: 1e-6 is a millionth
    decimal = expected.number.decimals is not None or given.number.decimals is not None
    return Grade.of(abs(values[0] - values[1]) <= (allowed if decimal else 0), said)


def gold_fault(gold: str) -> str:
    """Why a gold cannot be graded against; empty where it can."""
    if not gold.strip():
        return "the gold is empty"
    return "" if parse_quantity(answer_text(gold) or "") is not None else f"the gold {gold[:40]!r} is no number with a unit"


def _factor(unit: tuple[tuple[str, int], ...], target: tuple[tuple[str, int], ...]) -> Fraction | None:
    """How many of `target` one `unit` is; None where they measure different things, or that is not known."""
    if unit == target:
        return Fraction(1)
    sizes = [_size(one) for one in (unit, target)]
    if sizes[0] is None or sizes[1] is None or not unit or sizes[0][1] != sizes[1][1]:
        return None
    return sizes[0][0] / sizes[1][0]


@lru_cache(maxsize=256)
def _size(unit: tuple[tuple[str, int], ...]) -> tuple[Fraction, frozenset[tuple[str, Fraction]]] | None:
    """A unit in base units, and which; None where it is not known, or where its zero is elsewhere, as that of degrees Celsius."""
    registry = _registry()
    if registry is None:
        return None
    size, dimensions = Fraction(1), dict[str, Fraction]()
    for name, exponent in unit:
        if not name.isalpha():  # of a `$` pint would fail to make an expression
            return None
        try:
            if name not in registry:
                return None
            base = registry.Quantity(Fraction(1), name).to_base_units()
            magnitude = Fraction(base.magnitude)
        except (ArithmeticError, TypeError, ValueError):  # `nan` is a unit to it, and an octave no fraction
            return None
        if not base.units._units or not registry._is_multiplicative(registry.get_name(name)):
            return None
        size *= magnitude**exponent
        for dimension, power in base.units._units.items():
            dimensions[dimension] = dimensions.get(dimension, Fraction(0)) + Fraction(power) * exponent
    return size, frozenset((name, power) for name, power in dimensions.items() if power)


@cache
def _registry() -> Any:
    try:
        import pint
    except ImportError:
        return None
    return pint.UnitRegistry(non_int_type=Fraction)


@required
def numeric_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], answer: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for the right quantity, 0 for another, None where the gold is none (TRL's signature; `answer` is the gold column)."""
    texts = map(completion_text, completions)
    return [grade(gold=str(gold), answer=text).score().value for gold, text in zip(answer, texts, strict=True)]
