from fractions import Fraction

import pytest

from agentrl.rewards.math_text import normalize, parse_number, split_unit


@pytest.mark.parametrize(
    ("text", "value", "decimals"),
    [
        ("5", 5, None),
        ("-3", -3, None),
        ("\N{MINUS SIGN}3", -3, None),
        ("+5", 5, None),
        ("007", 7, None),
        ("115,000", 115000, None),
        ("10\\,000", 10000, None),
        ("2.50", Fraction(5, 2), 2),
        (".5", Fraction(1, 2), 1),
        ("1.5e3", 1500, 0),
        ("1.5 \\times 10^{-3}", Fraction(15, 10000), 4),
        ("3/4", Fraction(3, 4), None),
        ("\\dfrac{9}{7}", Fraction(9, 7), None),
        ("-\\frac{1}{-2}", Fraction(1, 2), None),
        ("2 2/3", Fraction(8, 3), None),
        ("-1\\frac14", Fraction(-5, 4), None),
        ("2\N{VULGAR FRACTION ONE HALF}", Fraction(5, 2), None),
        ("28 percent", Fraction(28, 100), None),
        ("$28\\%$", Fraction(28, 100), None),
        ("\u0663", 3, None),
        ("2+40", 42, None),
    ],
)
def test_numbers_are_read_exactly(text, value, decimals):
    number = parse_number(normalize(text))
    assert number is not None
    assert (number.value, number.decimals) == (value, decimals)
    assert number.percent == ("percent" in text or "%" in text)


@pytest.mark.parametrize("text", ["", "x", "1 7", "1,23", "1/0", "\\frac{1}{0}", "1e9999", "\\pi", "3 apples", "--"])
def test_what_is_no_number(text):
    assert parse_number(normalize(text)) is None


@pytest.mark.parametrize(
    ("text", "body", "unit"),
    [
        ("35 \\text{ cm}", "35", "cm"),
        ("35\\,\\mathrm{cm}", "35", "cm"),
        ("12 \\text{ cm}^2", "12", "cm^2"),
        ("12 square inches", "12", "in^2"),
        ("42 apples", "42", "apple"),
        ("90^\\circ", "90", "deg"),
        ("90\N{DEGREE SIGN}", "90", "deg"),
        ("$5", "5", "$"),
        ("-\\$5", "-5", "$"),
        ("5 dollars", "5", "$"),
        ("12_{7}", "12", "base 7"),
        ("42 or", "42 or", ""),
        ("3x", "3x", ""),
        ("\\text{cm}", "\\text{cm}", ""),
    ],
)
def test_units(text, body, unit):
    assert split_unit(normalize(text)) == (body, unit)
