from concurrent.futures import ThreadPoolExecutor

import pytest

from agentrl.envs.code import human_eval
from agentrl.rewards.unit_tests import grade_code

CONSTANTS = {"None": "    return None\n", "a constant": "    return 12345\n", "nothing": "    pass\n"}


def verdicts(answer):
    """Of all problems: answers by problem, two at once."""
    rows = human_eval()
    with ThreadPoolExecutor(2) as threads:
        grades = threads.map(lambda row: grade_code(answer(row), row), rows)
    return {row["task_id"]: grade.verdict for row, grade in zip(rows, grades, strict=True)}


@pytest.mark.slow
def test_every_canonical_solution_passes():
    found = verdicts(lambda row: row["canonical_solution"])
    assert len(found) == 164
    assert {problem: verdict for problem, verdict in found.items() if verdict != "pass"} == {}


@pytest.mark.slow
@pytest.mark.parametrize("body", CONSTANTS.values(), ids=CONSTANTS)
def test_every_constant_fails(body):
    found = verdicts(lambda row: body)
    assert {problem: verdict for problem, verdict in found.items() if verdict != "fail"} == {}


def test_a_whole_function_in_a_block_is_as_good_as_what_goes_on():
    row = human_eval()[32]  # its tests use a helper of the prompt
    whole = f"Here it is.\n```python\n{row['prompt']}{row['canonical_solution']}\n```"
    assert grade_code(whole, row).verdict == "pass"
    cheat = "```python\ndef poly(xs, x):\n    return 0\ndef find_zero(xs):\n    return 0\n```"
    assert grade_code(cheat, row).verdict == "fail"
