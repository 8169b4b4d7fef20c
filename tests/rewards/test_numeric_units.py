from fractions import Fraction

import pytest

from agentrl.rewards.numeric_units import gold_fault, grade, numeric_reward, parse_quantity


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("35 cm", 35, {"cm": 1}),
        ("35\\,\\mathrm{cm}", 35, {"cm": 1}),
        ("9.8 \\text{ m/s}^2", Fraction(49, 5), {"m": 1, "s": -2}),
        ("10 km per hour", 10, {"km": 1, "h": -1}),
        ("7 \\frac{m}{s}", 7, {"m": 1, "s": -1}),
        ("5 J/(kg K)", 5, {"J": 1, "kg": -1, "K": -1}),
        ("5 N\N{MIDDLE DOT}m", 5, {"N": 1, "m": 1}),
        ("12 square inches", 12, {"in": 2}),
        ("$5.50", Fraction(11, 2), {"$": 1}),
        ("90^\\circ", 90, {"deg": 1}),
        ("3 \\times 10^8 m/s", 3 * 10**8, {"m": 1, "s": -1}),
        ("-\\frac{1}{2} kg", Fraction(-1, 2), {"kg": 1}),
        ("1,000 kg", 1000, {"kg": 1}),
        ("28 percent", Fraction(28, 100), {}),
        ("5", 5, {}),
    ],
)
def test_quantities(text, value, unit):
    quantity = parse_quantity(text)
    assert quantity is not None
    assert (quantity.number.value, dict(quantity.unit)) == (value, unit)


@pytest.mark.parametrize("text", ["", "m", "5 m or 6 m", "2 m 3", "x", "$5 m", "5 m^", "9" * 300])
def test_what_is_no_quantity(text):
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("35 cm", "\\boxed{35\\text{ cm}}", "correct"),
        ("35 cm", "The answer is 35 centimeters.", "correct"),
        ("35 cm", "0.35 m", "correct"),
        ("35 cm", "35 m", "wrong"),
        ("35 cm", "35", "wrong"),
        ("35", "35 cm", "correct"),
        ("10 m/s", "36 km/h", "correct"),
        ("5 N", "5 kg m/s^2", "correct"),
        ("1 h", "60 min", "correct"),
        ("20 degC", "68 degF", "wrong"),
        ("1 Hz", "1 Bq", "wrong"),
        ("1 rad", "1 m", "wrong"),
        ("5 m", "5 M", "wrong"),
        ("5 MB", "5 mb", "wrong"),
        ("3 cm^2", "3 cm", "wrong"),
        ("5", "5 %", "wrong"),
        ("5 dollars", "$5", "correct"),
        ("5 widgets", "5 gadgets", "wrong"),
        ("1/3 m", "0.333333 m", "correct"),
        ("1/3 m", "0.33 m", "wrong"),
        ("9.8 m/s^2", "9.81 m/s^2", "wrong"),
        ("100 m", "100 m or so", "wrong"),
        ("100 m", "\\boxed{", "wrong"),
        ("some", "5", "unscorable"),
    ],
)
def test_numbers_and_units_decide(gold, answer, verdict):
    assert grade(gold=gold, answer=answer).verdict == verdict


def test_the_tolerance_is_for_written_decimals():
    assert grade(gold="9.8 m/s^2", answer="9.81 m/s^2", tolerance=0.01).verdict == "correct"
    assert grade(gold="100 m", answer="101 m", tolerance=0.01).verdict == "wrong"


def test_golds_are_quantities():
    assert gold_fault("35 cm") == ""
    assert gold_fault("") == "the gold is empty"
    assert "no number with a unit" in gold_fault("tall")


def test_the_reward_takes_columns():
    values = numeric_reward(prompts=["?"] * 3, completions=["1 m", "2 m", "1 m"], completion_ids=[[1]] * 3, answer=["1 m", "1 m", "?"])
    assert values == [1.0, 0.0, None]


@pytest.mark.parametrize("answer", ["5 m", "5 $", "5 m/$", "5 nan", "5 oct", "5 m/oct", "5 False"])
@pytest.mark.parametrize("gold", ["5 m^9", "5 USD"])
def test_no_unit_of_an_answer_stops_the_grader(gold, answer):
    assert grade(gold=gold, answer=f"\\boxed{{{answer}}}").verdict == "wrong"
