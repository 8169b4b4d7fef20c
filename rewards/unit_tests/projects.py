"""pytest projects: the test files run under pytest in one sandbox; the modules they import are proxies of the candidate in another.

So a verdict is as safe as one of function tests: no file, plug-in or patch of the candidate comes near pytest, and whatever `conftest.py`,
`pytest.ini` or test files it brings are seen by itself alone. What such tests cannot do: replace parts of the candidate (`monkeypatch`,
`mock.patch`), derive from its classes, catch its own exceptions by their class, compare its objects with `==`, or share files with it.
Those fail; grade such projects with a sandbox of their own, and trust the verdict less, because there pytest and the code it judges
are one process.
"""

from __future__ import annotations

import ast
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from agentrl.rewards.unit_tests import pools
from agentrl.rewards.unit_tests.functions import read_lines, run_pair, stopped, with_death
from agentrl.rewards.unit_tests.grade import CaseGrade, CodeGrade, failed, of_cases, unscorable
from agentrl.rewards.unit_tests.plan import BadTests, free_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.servers.sandbox.limits import Limits
    from agentrl.servers.sandbox.warm_watch import Watched


def grade_project(
    files: Mapping[str, str], tests: Mapping[str, str], *, num_tests: int | None = None, limits: Limits = pools.LIMITS
) -> CodeGrade:
    """Grade the files of a candidate by pytest. Raises `SandboxUnavailable`.

    Args:
        files: of the candidate, by path; its modules are imported by these.
        tests: test files, and what belongs to them, by path.
        num_tests: how many there must be; None for as many as pytest finds, at least one.
        limits: of the candidate and of pytest, each.
    """
    try:
        for path in (*files, *tests):
            _check_path(path)
    except BadTests as error:
        return unscorable(str(error))
    modules = sorted(set(filter(None, map(module_of, files))))
    pool = pools.pool((pools.CANDIDATE, pools.PROJECT_TESTER), preload=("pytest",), packages=("pytest",))
    texts = {path: _without_stars(text, modules) if path.endswith(".py") else text for path, text in tests.items()}
    told = {"files": texts, "modules": modules}
    seen = run_pair({"files": dict(files)}, told, limits=limits, pool=pool, tester=pools.PROJECT_TESTER)
    return with_death(_verdict(seen, num_tests, limits), seen, limits)


def module_of(path: str) -> str:
    """The dotted name under which a file is imported; empty where it is no module."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if not path.endswith(".py") or not all(part.isidentifier() for part in parts):
        return ""
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _without_stars(text: str, modules: Sequence[str]) -> str:
    """A test file that imports of the candidate what it reads, in place of `*`: that could bring an `abs` or `all` of the candidate's."""
    try:
        stars = [
            node
            for node in ast.parse(text).body
            if isinstance(node, ast.ImportFrom) and node.module in modules and [one.name for one in node.names] == ["*"]
        ]
        names = sorted(free_names(text)) if stars else []
    except (SyntaxError, ValueError, RecursionError, BadTests):  # pytest will say what is wrong with it
        return text
    lines = text.split("\n")
    for node in stars:
        row = node.lineno - 1
        lines[row] = f"from {node.module} import {', '.join(names)}" if names else "pass"
        lines[row + 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno)
    return "\n".join(lines)


def _check_path(path: str) -> None:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path:
        raise BadTests(f"a file of a project has a path below the project, got {path!r:.100}")


def _verdict(seen: Watched, num_tests: int | None, limits: Limits) -> CodeGrade:
    lines = read_lines(seen.outputs[0])
    wrong = next((line for line in lines if "broken" in line or "candidate" in line), None)
    if wrong is not None:
        return unscorable(str(wrong["broken"])) if "broken" in wrong else failed(str(wrong["candidate"]), num_tests or 1)
    collected = lines[0].get("collected") if lines else None
    if type(collected) is not int:
        return failed(stopped(seen, limits), num_tests or 1)
    if collected == 0 or (num_tests is not None and collected != num_tests):
        return unscorable(f"pytest found {collected} tests; there should be {'at least one' if num_tests is None else num_tests}")
    return _of_tests(lines[1:], collected, seen, limits)


def _of_tests(lines: list[dict[str, Any]], collected: int, seen: Watched, limits: Limits) -> CodeGrade:
    end = lines.pop() if lines and "end" in lines[-1] else None
    outcomes = [line.get("outcome") for line in lines]
    if [line.get("case") for line in lines] != list(range(len(lines))) or not set(outcomes) <= {"passed", "failed", "skipped"}:
        return failed("the tests reported something that is no verdict", collected)
    ran = [line for line in lines if line["outcome"] != "skipped"]
    cases = tuple(CaseGrade(passed=line["outcome"] == "passed", reason=str(line.get("reason") or "")) for line in ran)
    if end is None or len(lines) != collected:
        missing = CaseGrade(passed=False, reason=stopped(seen, limits))
        return of_cases((*cases, *[missing] * max(1, collected - len(lines))))
    if not cases:
        return unscorable("every test was skipped")
    if all(case.passed for case in cases) and not end.get("calls"):
        return unscorable("the tests passed without ever calling the candidate")
    return of_cases(cases)
