from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rewards.expression import MAX_CHARACTERS, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("8-3-2", 3),
        ("8/4/2", 1),
        ("1/3+1/6", Fraction(1, 2)),
        ("-(2+3)", -5),
        ("2*-3", -6),
        ("--2", 2),
        (" 6 \\times 7 ", 42),
        ("6\N{MULTIPLICATION SIGN}7\N{MINUS SIGN}2", 40),
    ],
)
def test_values(text, value):
    assert evaluate(text).value == value


def test_numbers_come_in_writing_order():
    assert evaluate("(10+2)*3-10").numbers == (10, 2, 3, 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "2+",
        "*2",
        "2 3",
        "(2",
        "2)",
        "()",
        "2(3)",
        "2**3",
        "2//3",
        "1/0",
        "1/(2-2)",
        "2.5",
        "x",
        "__import__('os')",
        "2=2",
        "+2",
        "\u0663",
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        evaluate(text)


def test_deep_nesting_is_no_danger():
    half = MAX_CHARACTERS // 2 - 1
    assert evaluate("(" * half + "7" + ")" * half).value == 7
    with pytest.raises(ValueError, match="characters"):
        evaluate("(" * MAX_CHARACTERS + "7")


trees = st.recursive(
    st.integers(0, 50).map(lambda number: (str(number), Fraction(number))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda parts: (
            f"({parts[0][0]}{parts[1]}{parts[2][0]})",
            {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__}[parts[1]](parts[0][1], parts[2][1]),
        )
    ),
    max_leaves=12,
)


@given(trees)
def test_agrees_with_fractions(tree):
    text, value = tree
    assert evaluate(text).value == value


@given(st.text("0123456789+-*/() .", max_size=30))
def test_any_text_has_a_value_or_a_reason(text):
    try:
        value = evaluate(text).value
    except ValueError as error:
        value = str(error)
    assert isinstance(value, Fraction) or value.startswith("expected")
