"""One answer graded by the tests of its row: the door to everything in this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.rewards.unit_tests import pools
from agentrl.rewards.unit_tests.compiled import compile_tests
from agentrl.rewards.unit_tests.functions import grade_functions
from agentrl.rewards.unit_tests.grade import CodeGrade, failed, unscorable
from agentrl.rewards.unit_tests.plan import BadTests
from agentrl.rewards.unit_tests.projects import grade_project
from agentrl.rewards.unit_tests.scripts import grade_script
from agentrl.rewards.unit_tests.shapes import FunctionTests, ProjectTests, ScriptTests, Tests, program_of, read_tests
from agentrl.servers.sandbox.limits import SandboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentrl.servers.sandbox.limits import Limits


def grade_code(answer: str, tests: Tests | Mapping[str, Any], *, limits: Limits = pools.LIMITS) -> CodeGrade:
    """Grade an answer by unit tests, in sandboxes.

    Example: `grade_code("def add(a, b): return a + b", {"tests": "add(1, 2) == 3", "entry": "add"}).verdict == "pass"`.

    Args:
        answer: text with code in it, see `agentrl.rewards.code_blocks`.
        tests: or a row of a data set that holds them, see `agentrl.rewards.unit_tests.shapes`.
        limits: of the candidate and of the tests, each; of each case, for tests of input and output.
    Returns: `unscorable` where the tests are at fault, or the sandbox is even after further tries; `fail` for whatever the answer does.
    """
    try:
        found = tests if isinstance(tests, FunctionTests | ScriptTests | ProjectTests) else read_tests(tests)
        code = program_of(answer, found)
        if code is None:
            return failed("there is no code in the answer", _num_cases(found))
        return pools.persistent(lambda: _grade(code, found, limits))
    except (BadTests, SandboxUnavailable) as error:
        return unscorable(str(error))


def _grade(code: list[str], tests: Tests, limits: Limits) -> CodeGrade:
    if isinstance(tests, ScriptTests):
        return grade_script("\n".join(code), tests.cases, comparison=tests.comparison, limits=limits)
    if isinstance(tests, ProjectTests):
        return grade_project({"solution.py": "\n".join(code)}, tests.files, num_tests=tests.num_tests, limits=limits)
    return grade_functions(
        code, tests.tests, entry=tests.entry, before=tests.before, names=tests.names, in_place=tests.in_place, limits=limits
    )


def _num_cases(tests: Tests) -> int:
    if isinstance(tests, ScriptTests):
        return len(tests.cases)
    return tests.num_tests or 1 if isinstance(tests, ProjectTests) else compile_tests(tests.tests, tests.before).num_cases
