import json
import time
from pathlib import Path

import pytest

from agentrl.rewards.math_answer import Policy, gold_fault, grade, math_reward

CASES = Path(__file__).parent.parent / "cases"
CORRECT, WRONG, UNSCORABLE = "correct", "wrong", "unscorable"


def cases(name):
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


@pytest.mark.parametrize("case", cases("math_grading.jsonl"), ids=lambda case: case["why"])
def test_cases(case):
    result = grade(gold=case["gold"], answer=case["answer"])
    assert result.verdict == case["verdict"], result
    assert result.verdict != UNSCORABLE or result.reason
    if case["gold"]:
        assert grade(gold=case["gold"], answer=case["gold"]).verdict == CORRECT


@pytest.mark.parametrize("case", cases("math_pairs.jsonl"), ids=lambda case: f"{case['gold']} {case['answer']}")
def test_pairs(case):
    result = grade(gold=case["gold"], answer=case["answer"])
    assert result.verdict == case["verdict"], (case["why"], result)


@pytest.mark.parametrize("case", cases("math_deadline.jsonl"), ids=lambda case: case["answer"])
def test_what_is_too_large_is_refused_before_it_is_evaluated(case):
    grade(gold="\\pi", answer="x")  # the first formula imports sympy
    started = time.perf_counter()
    result = grade(gold=case["gold"], answer=case["answer"])
    assert result.verdict in case["verdict_in"]
    assert "too large" in result.reason
    assert time.perf_counter() - started < case["within_s"]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7", "7.0"),
        ("0.5", "1/2"),
        ("1/3", "0.333333"),
        ("0.333333", "1/3"),
        ("\\pi", "3.14159265"),
        ("0.3", "0.30000000000000004"),
        ("1.5\\times 10^5", "150000"),
        ("-\\frac{3}{4}", "\\frac{-3}{4}"),
        ("-1\\frac14", "-1.25"),
        ("10{,}000", "10 000"),
        ("\\frac{\\sqrt{3}}{3}", "1/\\sqrt{3}"),
        ("\\sqrt{10^{50}}", "10^{25}"),
        ("e^{i\\pi}", "-1"),
        ("5!", "120"),
        ("\\binom{5}{2}", "10"),
        ("\\log_2 8", "3"),
        ("\\sum_{k=1}^{10} k", "55"),
        ("n(n+1)/2", "\\frac{n^2+n}{2}"),
        ("x^10", "x^{10}"),
        ("\\sin 2x", "2\\sin x\\cos x"),
        ("$x=5$", "5"),
        ("5", "$x=5$"),
        ("42", "x = 2+40 = 42"),
        ("$y=2x+1$", "2x-y+1=0"),
        ("x>3", "-x<-3"),
        ("3<x<5", "5>x>3"),
        ("x \\in [1,2]", "[1,2]"),
        ("x = 2, y = 3", "y=3, x=2"),
        ("1,2", "2 and 1"),
        ("\\{1,2\\}", "2,1"),
        ("\\pm 3", "3,-3"),
        ("1,000, 2,000", "2000, 1000"),
        ("(-\\infty,3)\\cup[5,\\infty)", "[5,\\infty)\\cup(-\\infty,3)"),
        ("\\left(1,2\\right)", "(1,2)"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
        ("\\text{Tuesday}", "tuesday"),
        ("\\text{(B)}", "B"),
        ("35", "35 \\text{ cm}"),
        ("35 cm", "35 centimeters"),
        ("12 \\text{ cm}^2", "12 square centimeters"),
        ("90^\\circ", "90 degrees"),
        ("\\$5.50", "5.5"),
        ("28\\%", "0.28"),
        ("9^{9^9}", "9^{9^9}"),
    ],
)
def test_equal_answers(gold, answer):
    assert grade(gold=gold, answer=answer).verdict == CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/3", "0.333"),
        ("\\pi", "22/7"),
        ("1000000", "1000000.5"),
        ("0.0000001", "0.0000002"),
        ("1234567.1", "1234567.2"),
        ("0.1", "0.10000001"),
        ("10^{50}", "10^{50}+1"),
        ("x/2004!", "x/2006!"),
        ("x", "x+10^{-30}"),
        ("\\sqrt{2}", "\\sqrt{2}+10^{-40}"),
        ("17", "1 7"),
        ("6", "3 3"),
        ("34", "3$4$"),
        ("42", "2+40=43"),
        ("42", "2+41=42"),
        ("5", "2x+1=5"),
        ("x=5", "y=5"),
        ("x^2 = 4", "x = 2"),
        ("2x+3y=6", "4x+6y=6"),
        ("x>3", "x\\geq 3"),
        ("x>3", "x<3"),
        ("x>3", "(3,\\infty)"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "1,2"),
        ("(5,3)", "(7,2)"),
        ("[1,2)", "[1,2]"),
        ("1,2", "1"),
        ("1", "1,2"),
        ("\\pm 3", "3"),
        ("3:4", "4:3"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
        ("|x|", "x"),
        ("3+4i", "3-4i"),
        ("\\infty", "-\\infty"),
        ("\\text{ate}", "tea"),
        ("B", "C"),
        ("12 \\text{ cm}^2", "12 \\text{ cm}"),
        ("12_{7}", "12"),
        ("12_7", "12_8"),
        ("28\\%", "28"),
        ("4", "not 4"),
        ("4", "4 or so"),
        ("3", "\\boxed{3 \\text{ or } 4}"),
        ("4", ""),
        ("4", "\\boxed{}"),
        ("4", "<think>\\boxed{4}"),
        ("4", "\udc80\ufffd"),
        ("4", "9" * 5000),
    ],
)
def test_unequal_answers(gold, answer):
    assert grade(gold=gold, answer=answer).verdict == WRONG


@pytest.mark.parametrize("gold", ["", "\\boxed{}", "((((", "\\frac{1}{", "5!!", "2 3", "9^{9^9}"])
def test_a_gold_that_cannot_be_compared_with_is_unscorable(gold):
    result = grade(gold=gold, answer="3")
    assert result.verdict == UNSCORABLE
    assert "gold" in result.reason
    assert result.score().value is None
    assert gold_fault(gold) == result.reason


@pytest.mark.parametrize(
    ("policy", "gold", "answer"),
    [
        (Policy(interval_for_inequality=True), "(3,5]", "3<x\\le 5"),
        (Policy(interval_for_inequality=True), "x \\le 3", "(-\\infty,3]"),
        (Policy(round_to_gold=True), "3.14", "3.14159"),
        (Policy(percent_as_number=True), "28\\%", "28"),
    ],
)
def test_policies_allow_what_is_wrong_without_them(policy, gold, answer):
    assert grade(gold=gold, answer=answer).verdict == WRONG
    assert grade(gold=gold, answer=answer, policy=policy).verdict == CORRECT


def test_the_reward_reads_both_forms_of_completions():
    messages = [{"role": "assistant", "content": "so \\boxed{8}"}]
    values = math_reward(
        prompts=["5+3="] * 4,
        completions=["8", messages, "\\boxed{9}", "8"],
        completion_ids=[[1]] * 4,
        answer=["8", "8", "8", ""],
    )
    assert values == [1.0, 1.0, 0.0, None]
