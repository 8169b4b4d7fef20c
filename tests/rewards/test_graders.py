import pytest

from agentrl.rewards.graders import GRADERS, grader
from agentrl.rewards.math_compare import Policy

GOLDS = {
    "math": "So it is\n$x$ and thus \\boxed{\\frac{\\pi}{2}}.",
    "gsm8k": "1+1\n#### 2",
    "multiple_choice": "B",
    "numeric_units": "35 cm",
    "exact": "New York",
}


@pytest.mark.parametrize("name", GRADERS)
def test_every_grader_takes_its_own_solution_and_nothing_else(name):
    one = grader(name)
    assert one.name == name
    assert one.gold_fault(GOLDS[name]) == ""
    assert one.grade(gold=GOLDS[name], answer=one.solution(GOLDS[name]), options=None).verdict == "correct"
    for nothing in ("", "?", one.asks):
        assert one.grade(gold=GOLDS[name], answer=nothing, options=None).verdict == "wrong"


@pytest.mark.parametrize("name", GRADERS)
@pytest.mark.parametrize("gold", [None, "", "  "])
def test_an_empty_gold_is_said_to_be_empty(name, gold):
    assert grader(name).gold_fault(gold) == "the gold is empty"


@pytest.mark.parametrize(
    ("name", "gold", "why"),
    [
        ("math", "First we add.\nThen we are done", "needs its answer in a box"),
        ("math", "((((", "does not parse"),
        ("math", "9^{9^{9}}", "too large"),
        ("gsm8k", "many", "not a number"),
        ("multiple_choice", "E", "no option"),
        ("numeric_units", "tall", "no number"),
        ("exact", "a } b", "graded against itself"),
    ],
)
def test_golds_that_cannot_be_graded_against_are_named(name, gold, why):
    options = ["x", "y"] if name == "multiple_choice" else None
    assert why in grader(name).gold_fault(gold, options)


def test_policies_and_options_are_passed_on():
    assert grader("math", Policy(round_to_gold=True)).grade(gold="3.14", answer="3.14159").verdict == "correct"
    assert grader("gsm8k", Policy(percent_as_number=True)).grade(gold="#### 28", answer="28\\%").verdict == "correct"
    assert grader("multiple_choice").grade(gold="B", answer="Paris", options=["Rome", "Paris"]).verdict == "correct"


def test_an_unknown_grader_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no grader is named 'maths'; there are math, gsm8k"):
        grader("maths")
