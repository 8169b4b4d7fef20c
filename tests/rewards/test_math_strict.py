import pytest

from agentrl.rewards.math_strict import is_letters, refusal, with_bars, with_names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\\frac{3}{4}1", "without an operator"),
        ("A1", "without an operator"),
        ("\\pi1", "without an operator"),
        ("(x+1)2", "without an operator"),
        ("|x|1", "without an operator"),
        ("2^n1", "without an operator"),
        ("x^{2}3", "without an operator"),
        ("n!1", "without an operator"),
        ("not 0", "is a word"),
        ("about x", "is a word"),
        ("2 maybe", "is a word"),
        ("\\infty+1", "infinity"),
        ("2\\infty", "infinity"),
        ("\\inftyx", "no place"),
        ("5!!", "no place"),
        ("1+\\ldots+n", "no place"),
        ("5'", "no place"),
        ("9^{9}^{9}", "raised once more"),
        ("1/2x", "below the line"),
        ("a/b\\pi", "below the line"),
    ],
)
def test_refused(text, why):
    assert why in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "2x",
        "\\pi x^{2}",
        "\\sqrt{2}",
        "\\frac{1}{2}",
        "\\log_{2}8",
        "\\log_2 8",
        "\\log_a 8",
        "\\sum_{k=1}^{10}2k",
        "\\sum_{k=1}^{\\infty}\\frac{1}{k^{2}}",
        "\\int_0^\\infty 2x dx",
        "\\lim_{x\\to\\infty} 2",
        "\\sin^{2}2x",
        "-\\infty",
        "+\\infty",
        "\\frac{12!}{5!7!}",
        "2abc",
        "x_{min}",
        "a/(b+c)",
        "n(n+1)/2",
        "\\pi/4",
        "|x-1|+2",
        "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
        "2\\text{ apples}",
    ],
)
def test_not_refused(text):
    assert refusal(text) == ""


def test_derivatives_get_names():
    assert with_names("y'+y''") == "y_{p}+y_{pp}"
    assert with_names("f^{\\prime}") == "f_{p}"
    assert with_names("\\frac{dy}{dx}") == "y_{dx}"
    assert with_names("\\frac{d^2 y}{dx^2}") == "y_{ddxx}"
    assert with_names("\\frac{d}{x}") == "\\frac{d}{x}"


def test_bars_open_and_close_in_turn():
    assert with_bars("2|x|+|y|") == "2\\lvert x\\rvert +\\lvert y\\rvert "
    for nested in ("||x|-1|", "|x", "x"):
        assert with_bars(nested) == nested


def test_neighbouring_letters_are_a_product():
    assert is_letters("abc")
    assert is_letters("zyx")
    assert not is_letters("cat")
    assert not is_letters("aab")
