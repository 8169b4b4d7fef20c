import pytest

from agentrl.envs.adapters.reasoning_guards import MOST_CHARS, is_formula, is_literal, may_be_scored


@pytest.mark.parametrize("answer", ["1 2 3\n4 5 6", "[[1, 2], [3, 4]]", "ABC DEF", "[1, 2", "", "-3", "_ Q\nQ _"])
def test_what_python_reads_as_a_value_or_not_at_all_may_run(answer):
    assert is_literal(answer)


@pytest.mark.parametrize(
    "answer", ["__import__('os')._exit(0)", "exit()", "[x for x in ()]", "9**9**9", "x", "open('/etc/passwd').read()", "'a' * 9"]
)
def test_programs_may_not_run(answer):
    assert not is_literal(answer)


@pytest.mark.parametrize(
    "answer",
    ["2*x**3/3 + C", "E**(2*x)*sin(x)", "-cos(3*x) + ln(x)", "(1 - 9*x**2)**(1/2)", "49*(85 - 1)/14 - 42", "3", "x**-2", "1.5e3*x"],
)
def test_formulas_are_formulas(answer):
    assert is_formula(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "exit(0)",
        "__import__('os')",
        "x.__class__",
        "x.diff()",
        "open('a')",
        "'a'",
        "[1, 2]",
        "lambda: 0",
        "9**9**9",
        "(9**99)**99",
        "9**(99*99*99)",
        "sin(x, evaluate=0)",
        "Integral(x, x)",
        "x := 1",
        "2 x",
        "x if x else 1",
        "True",
        "(" * 300 + "1" + ")" * 300,
        "x" * 2001,
        "",
    ],
)
def test_what_could_run_or_explode_is_no_formula(answer):
    assert not is_formula(answer)


def entry(name, answer, **metadata):
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}}


def test_only_the_numbers_of_the_question_make_24():
    asked = entry("puzzle24", "8*(5*1 - 2)", numbers=[8, 5, 1, 2])
    assert may_be_scored("(5*1 - 2)*8", asked)
    assert not may_be_scored("4*6*1*1", asked)
    assert not may_be_scored("8*(5*1 - 2) + 0*1", asked)


@pytest.mark.parametrize(
    ("answer", "fine"),
    [("0.234375", True), ("15/64", True), ("0.23437", True), ("0", False), ("0.2", False), ("half", False), ("1/0", False)],
)
def test_a_probability_is_the_number_and_not_its_first_digits(answer, fine):
    assert may_be_scored(answer, entry("coin_flip", "0.234375")) is fine


def test_a_yes_or_no_is_one_of_the_two():
    halting = entry("game_of_life_halting", "False")
    assert may_be_scored(" False", halting)
    assert not may_be_scored("True", halting)
    assert not may_be_scored("anything", halting)


def test_the_gold_is_always_scored_and_novels_never():
    assert may_be_scored("3*Integral(x, x) + C", entry("intermediate_integration", "3*Integral(x, x) + C"))
    assert not may_be_scored("x" * (MOST_CHARS + 1), entry("gcd", "5"))
    assert may_be_scored("anything at all", entry("gcd", "5"))
