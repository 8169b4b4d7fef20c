"""Written numbers, units and the many ways to write the same formula, without a computer algebra system."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from agentrl.rewards.expression import evaluate

MAX_CHARACTERS = 1000
"""A longer answer is not graded: no formula of interest needs it, and some parsers take exponential time."""
MAX_EXPONENT = 400
"""Largest power of ten in a written number that is multiplied out."""

_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\left\s*\|"), r"\\lvert "),
    (re.compile(r"\\right\s*\|"), r"\\rvert "),
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle)(?![A-Za-z])\s*\.?"), ""),
    (re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), "."),  # a decimal comma; grouped digits are done with
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\operatorname\s*\{\s*(arc(?:sin|cos|tan)|sinh|cosh|tanh|lcm|gcd|det)\s*\}"), r"\\\1 "),
    (re.compile(r"(?<![\d.])(\d{1,3}) (\d{3})(?: (\d{3}))?(?![\d ])"), r"\1\2\3"),
    (re.compile(r"\\[,!;: ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"\\math(?:rm|it|bf)\{\s*([A-Za-z])\s*\}|\\operatorname\{\s*([ei])\s*\}"), r"\1\2"),
    (re.compile(r"\\(?:textbf|textrm|textit|textnormal|mathrm|mathbf|mathit|mbox|operatorname)\s*\{"), r"\\text{"),
    (re.compile(r"\\text\s*\{\s*(?:percent(?:age)?|pct)\s*\}|(?<![A-Za-z\\])(?:percent(?:age)?|pct)(?![A-Za-z])"), r"\\%"),
    (re.compile(r"(?<!\\)%"), r"\\%"),
    (re.compile(r"\\text\s*\{\s*(and|or)\s*\}"), r" \1 "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(-?\d+)"), r"^{\1}"),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])(pi|sin|cos|tan|cot|sec|csc|log|ln|exp|theta|alpha|beta|gamma|lambda)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([0-9A-Za-z])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"_\s*(\d{2,})"), r"_{\1}"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"(?<=[A-Za-z])\s*!="), r"\\ne "),
    (re.compile(r"\\leq(?:slant)?(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\geq(?:slant)?(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\s+"), " "),
)
_CHARACTERS = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{HYPHEN}": "-",
    "\N{FULLWIDTH HYPHEN-MINUS}": "-",
    "\N{MULTIPLICATION SIGN}": r"\times ",
    "\N{MIDDLE DOT}": r"\cdot ",
    "\N{DOT OPERATOR}": r"\cdot ",
    "\N{DIVISION SIGN}": "/",
    "\N{FRACTION SLASH}": "/",
    "\N{DIVISION SLASH}": "/",
    "\N{LESS-THAN OR EQUAL TO}": r"\le ",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
    "\N{NOT EQUAL TO}": r"\ne ",
    "\N{GREEK SMALL LETTER PI}": r"\pi ",
    "\N{INFINITY}": r"\infty ",
    "\N{DEGREE SIGN}": r"^{\circ}",
    "\N{PLUS-MINUS SIGN}": r"\pm ",
    "\N{UNION}": r"\cup ",
    "\N{ELEMENT OF}": r"\in ",
    "\N{SQUARE ROOT}": r"\sqrt ",
    "\N{SUPERSCRIPT TWO}": "^{2}",
    "\N{SUPERSCRIPT THREE}": "^{3}",
    "\N{NO-BREAK SPACE}": " ",
    "\N{NARROW NO-BREAK SPACE}": " ",
    "\N{THIN SPACE}": " ",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots ",
    "\N{FULLWIDTH PERCENT SIGN}": r"\%",
    "\N{EURO SIGN}": r"\euro ",
    "\N{POUND SIGN}": r"\pound ",
}
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_ENCLOSED = tuple(re.compile(pattern, re.DOTALL) for pattern in (r"\$\$(.*)\$\$", r"\$(.*)\$", r"\\\((.*)\\\)", r"\\\[(.*)\\\]"))


def normalize(text: str) -> str:
    """One spelling for formulas that are written differently; what they mean is kept, signs, brackets and units included."""
    text = text.strip()
    if _PLAIN.fullmatch(text):  # most answers
        return text
    text = "".join(map(_plain_character, text))
    for _ in range(2):
        for pattern in _ENCLOSED:
            inner = pattern.fullmatch(text)
            if inner is not None and not re.search(r"(?<!\\)\$", inner[1]):
                text = inner[1].strip()
    if text.count("$") == 1:  # the currency, not a formula's border
        text = re.sub(r"^(-?) ?\$(?=\s*[\d.])", r"\1\\$", text)
    text = re.sub(r"(?<!\\)\$", " ", text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;:").strip()


def compact(text: str) -> str:
    """Without white space, except between digits: `1, 234` is not `1,234`, nor `1. 5` one and a half."""
    return re.sub(r"(?<![\d.,])\s+|\s+(?!\d)", "", text)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    if unicodedata.decomposition(character).startswith("<fraction>"):
        above, below = unicodedata.normalize("NFKC", character).split("\N{FRACTION SLASH}")
        return f"\\frac{{{above}}}{{{below or 1}}}"
    return character


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A written number, exactly."""

    value: Fraction
    """With the percent sign applied: 0.28 for 28 %."""
    decimals: int | None = None
    """Digits after the decimal point; None where there is no point."""
    percent: bool = False


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_WHOLE = re.compile(rf"([-+]?) ?({_DIGITS})?(?:\.(\d*))?")
_POWER = re.compile(r"(?: ?(?:\\times|\\cdot|\*) ?10\^\{(-?\d{1,4})\}|[eE]([-+]?\d{1,4}))$")
_FRACTION = re.compile(rf"([-+]?) ?({_DIGITS})? ?\\frac ?\{{ ?(-?) ?({_DIGITS}) ?\}} ?\{{ ?(-?) ?({_DIGITS}) ?\}}")
_REPEATING = re.compile(r"([-+]?) ?(\d*)\.(\d*)\\overline ?\{ ?(\d{1,40}) ?\}")


def parse_number(text: str) -> Number | None:
    """Read a normalized text that is one number: integer, decimal, fraction, mixed number, power of ten, percentage, plain arithmetic."""
    text, percent = (text[: -len(r"\%")].rstrip(), True) if text.endswith(r"\%") else (text, False)
    number = _decimal(text) or _fraction(text) or _repeating(text) or _sum(text)
    if number is None or not percent:
        return number
    return Number(value=number.value / 100, decimals=number.decimals, percent=True)


def _decimal(text: str) -> Number | None:
    power = _POWER.search(text)
    exponent = int(power[1] or power[2]) if power else 0
    match = _WHOLE.fullmatch(text[: power.start()].strip() if power else text)
    if match is None or not (match[2] or match[3]) or abs(exponent) > MAX_EXPONENT:
        return None
    sign, whole, after = match.groups()
    digits = (whole or "0").replace(",", "") + (after or "")
    value = Fraction(int(digits), 10 ** len(after or "")) * Fraction(10) ** exponent
    return Number(value=-value if sign == "-" else value, decimals=None if after is None else max(0, len(after) - exponent))


def _fraction(text: str) -> Number | None:
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    sign, whole, above_sign, above, below_sign, below = match.groups()
    number = [int((digits or "0").replace(",", "")) for digits in (whole, above, below)]
    if number[2] == 0 or (whole and (above_sign or below_sign)):
        return None
    value = number[0] + Fraction(number[1], number[2]) * (-1 if bool(above_sign) != bool(below_sign) else 1)
    return Number(value=-value if sign == "-" else value)


def _repeating(text: str) -> Number | None:
    r"""`0.1\overline{6}` is a sixth."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    sign, whole, before, again = match.groups()
    value = int(whole or "0") + (Fraction(int(before or "0")) + Fraction(int(again), 10 ** len(again) - 1)) / 10 ** len(before)
    return Number(value=-value if sign == "-" else value)


def _sum(text: str) -> Number | None:
    try:
        return Number(value=evaluate(text).value)
    except ValueError:
        return None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNIT_NAMES = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "millimeter": "mm",
    "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "mile": "mi", "yard": "yd", "gram": "g", "kilogram": "kg", "pound": "lb",
    "liter": "l", "litre": "l", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "dollar": "$", "usd": "$",
    "degree": "deg", "unit": "", "euro": "eur", "lbs": "lb", "kgs": "kg", "hrs": "h", "mins": "min", "secs": "s", "cms": "cm",
}  # fmt: skip
_NOT_UNITS = _words(
    "and or not to mod modulo minus plus times over by than if for when maybe but is was no none never about approximately approx roughly "
    "nearly almost around circa perhaps possibly probably likely exactly more less fewer most least at up down within under above below "
    "hundred thousand thousands million millions billion billions trillion trillions dozen dozens score pair pairs k half halves third "
    "thirds quarter quarters fourth fourths fifth fifths tenth tenths hundredth hundredths thousandth thousandths squared cubed factorial "
    "negative positive power powers root roots base remainder recurring repeating point inverse"
)
"""Words behind a number that change it, or take it back."""
_TEXT_UNIT = re.compile(r" ?\\text ?\{ ?([^{}]*[A-Za-z][^{}]*?)\.? ?\}(?: ?\^ ?\{ ?(-?\d) ?\})?$")
_WORD_UNIT = re.compile(r"(?<=[\d}]) ((?:sq(?:uare)?|cubic)? ?[A-Za-z]{2,})\.?(?: ?\^ ?\{ ?(-?\d) ?\})?$")
_DEGREES = re.compile(r" ?\^ ?\{? ?\\circ ?\}?$| ?\\degree$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
"""Of their arguments degrees are a part, and no unit of what comes out."""
_MONEY = re.compile(r"^(-?) ?(\\\$|\\euro|\\pound) ?(?=[\d.])")
_BASE = re.compile(r"(?<=\d) ?_ ?\{? ?(\d+) ?\}?$")


def split_unit(text: str) -> tuple[str, str]:
    r"""Cut the unit off a quantity: `35 \text{ cm}` -> `35`, `cm`. The unit is empty where there is none."""
    if (money := _MONEY.match(text)) is not None:
        return money[1] + text[money.end() :], {"\\$": "$", "\\euro": "eur", "\\pound": "gbp"}[money[2]]
    if (degrees := _DEGREES.search(text)) is not None and degrees.start() > 0 and not _TRIGONOMETRIC.search(text):
        return text[: degrees.start()], "deg"
    if (base := _BASE.search(text)) is not None:
        return text[: base.start()], f"base {base[1]}"
    for pattern in (_TEXT_UNIT, _WORD_UNIT):
        found = pattern.search(text)
        if found is not None and found.start() > 0 and not _NOT_UNITS & set(found[1].lower().split()):
            return text[: found.start()].strip(), _unit(found[1], found[2] or "")
    return text, ""


def _unit(words: str, power: str) -> str:
    squared = {"square": "2", "sq": "2", "cubic": "3"}
    parts = words.strip().split()
    if parts and parts[0].lower() in squared:
        power = squared[parts.pop(0).lower()]
    return " ".join(map(unit_name, parts)) + (f"^{power}" if power not in ("", "1") else "")


def unit_name(word: str) -> str:
    """One name for a unit that has several: `centimeters` is `cm`."""
    if word.lower() in _UNIT_NAMES:
        return _UNIT_NAMES[word.lower()]
    if len(word) < 4 or (len(word) == 4 and not word.islower()):  # symbols: MB is not mb
        return word
    singular = word.lower().removesuffix("s")
    return _UNIT_NAMES.get(singular, singular)
