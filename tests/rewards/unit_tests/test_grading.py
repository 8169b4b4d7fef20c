import pytest

from agentrl.errors import ConfigError
from agentrl.rewards.unit_tests import code_reward, code_share_reward, grade_code
from agentrl.rewards.unit_tests.grade import CaseGrade, of_cases, unscorable
from agentrl.rewards.unit_tests.pools import TRIES, persistent
from agentrl.rewards.unit_tests.rows import grade_rows
from agentrl.servers.sandbox import SandboxUnavailable

ADD = "def add(a, b):\n    return a + b\n"
HALF = "def add(a, b):\n    return 3\n"
TESTS = ["add(1, 2) == 3", "add(2, 2) == 4"]


def test_an_answer_is_graded_by_its_last_block():
    row = {"tests": TESTS, "entry": "add"}
    assert grade_code(f"First:\n```python\n{HALF}```\nBetter:\n```python\n{ADD}```\nTry `add(1, 2)`.", row).verdict == "pass"
    assert grade_code(f"```python\n{ADD}```\n```python\nprint(add(1, 2))\n```", row).verdict == "pass"
    grade = grade_code("I cannot.\n```", row)
    assert (grade.verdict, grade.reason, len(grade.cases)) == ("fail", "there is no code in the answer", 2)


def test_scores_count_all_or_the_share():
    grade = of_cases((CaseGrade(passed=True), CaseGrade(passed=False, reason="no")))
    assert grade.score().value == 0
    assert grade.score("fraction").value == 0.5
    assert grade.score().parts == {"passed": 0.0, "cases": 0.5}
    score = unscorable("the row has no tests").score()
    assert (score.value, score.reason) == (None, "the row has no tests")


def test_reward_functions_have_trls_signature():
    columns = {"tests": [TESTS, TESTS, "", TESTS], "entry": ["add"] * 4, "trainer_state": None}
    batch = {"prompts": ["p"] * 4, "completions": [ADD, HALF, ADD, [{"role": "assistant", "content": f"```python\n{ADD}```"}]]}
    assert code_reward(**batch, completion_ids=[[]] * 4, **columns) == [1.0, 0.0, None, 1.0]
    assert code_share_reward(**batch, completion_ids=[[]] * 4, **columns) == [1.0, 0.5, None, 1.0]


def test_a_program_that_prints_is_graded():
    row = {"tests": [{"input": "1 2", "output": "3"}, {"input": "3 4", "output": "7"}]}
    assert grade_code("```python\nprint(sum(map(int, input().split())))\n```", row).verdict == "pass"
    assert grade_code("print(3)", row).score("fraction").value == 0.5


def test_rows_are_graded_in_order():
    rows = [{"solution": code, "tests": TESTS, "entry": "add"} for code in (ADD, HALF, "add = 1", ADD) * 5]
    results = list(grade_rows(rows))
    assert [result["verdict"] for result in results] == ["pass", "fail", "fail", "pass"] * 5
    assert results[1] == {"verdict": "fail", "reason": "`add(2, 2) == 4` is False", "cases": 2, "passed": 1}
    with pytest.raises(ConfigError, match="solution"):
        list(grade_rows([{"tests": TESTS}]))


@pytest.mark.parametrize("failures", range(TRIES + 1))
def test_a_sandbox_that_fails_is_tried_again_and_never_a_verdict(failures):
    left, pauses = [failures], []

    def attempt():
        left[0] -= 1
        if left[0] >= 0:
            raise SandboxUnavailable("no room")
        return "graded"

    if failures < TRIES:
        assert persistent(attempt, pauses.append) == "graded"
    else:
        with pytest.raises(SandboxUnavailable, match="no room"):
            persistent(attempt, pauses.append)
    assert pauses == sorted(set(pauses))
    assert len(pauses) == min(failures, TRIES - 1)
