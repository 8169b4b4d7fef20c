import pytest

from agentrl.rewards.math_symbolic import TooLarge, Unparsed, equal, formula, proportional


@pytest.mark.parametrize(
    "text",
    [
        "(9!)!",
        "2^{1000000}",
        "\\frac{1}{9^{9^9}}",
        "e^{e^{e^{e}}}",
        "\\binom{1000000}{500000}",
        "\\gcd(2^{9999},3)",
        "\\prod_{k=1}^{99999} k",
    ],
)
def test_what_would_not_end_is_refused(text):
    with pytest.raises(TooLarge):
        formula(text)


@pytest.mark.parametrize("text", ["x^2+1)", "3 +", "2 3", "5!!", "\\frac{1}{"])
def test_a_text_is_read_as_a_whole_or_not_at_all(text):
    with pytest.raises(Unparsed):
        formula(text)


def test_values_decide_and_not_forms():
    assert equal(formula("\\tan^{2}(y)+1"), formula("\\sec^{2}(y)"))
    assert equal(formula("\\frac{x^{2}-1}{x-1}"), formula("x+1"))
    assert not equal(formula("\\sqrt{x^{2}}"), formula("x"))
    assert not equal(formula("\\frac{1}{2004!}"), formula("\\frac{1}{2006!}"))


def test_multiples_keep_their_sign_where_it_matters():
    left, right = formula("2x-6"), formula("3-x")
    assert proportional(left, right, positive=False)
    assert not proportional(left, right, positive=True)
    assert not proportional(left, formula("x-2"), positive=False)
    assert not proportional(formula("0"), formula("0"), positive=False)
