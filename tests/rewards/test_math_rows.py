import json
from pathlib import Path

import pytest

from agentrl.errors import ConfigError
from agentrl.rewards.math_rows import grade_rows

CASES = Path(__file__).parent.parent / "cases"


def test_the_cases_come_out_in_order():
    rows = [json.loads(line) for line in (CASES / "math_grading.jsonl").read_text().splitlines()]
    results = list(grade_rows(rows))
    assert [result["verdict"] for result in results] == [row["verdict"] for row in rows]
    assert all(set(result) == {"verdict", "reason", "answer"} for result in results)


def test_rows_may_name_a_grader_options_and_a_policy():
    rows = [
        {"gold": "3.14", "answer": "3.14159", "policy": ["round_to_gold"]},
        {"gold": "#### 5", "answer": "5", "grader": "gsm8k"},
        {"gold": "B", "answer": "y", "grader": "multiple_choice", "options": ["x", "y"]},
    ]
    assert [result["verdict"] for result in grade_rows(rows)] == ["correct"] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": "1"}, "got None for answer"),
        ({"answer": "1", "solution": "2"}, r"columns: answer, solution"),
        ({"gold": 1, "answer": "1"}, "got 1 for gold"),
        ({"gold": "1", "answer": "1", "grader": "sums"}, "`grader` may be math, gsm8k"),
        ({"gold": "1", "answer": "1", "policy": ["lenient"]}, "`policy` is a list of interval_for_inequality"),
        ({"gold": "1", "answer": "1", "policy": "round_to_gold"}, "`policy` is a list"),
    ],
)
def test_other_rows_are_refused(row, message):
    with pytest.raises(ConfigError, match=message):
        list(grade_rows([{"gold": "1", "answer": "1"}, row]))
