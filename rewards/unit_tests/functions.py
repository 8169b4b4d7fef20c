"""Function tests: assertions, expressions or a `check(candidate)` in one sandbox, the code that they test in another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from agentrl.rewards.unit_tests import pools
from agentrl.rewards.unit_tests.compiled import compile_tests
from agentrl.rewards.unit_tests.grade import CaseGrade, CodeGrade, failed, of_cases, unscorable
from agentrl.rewards.unit_tests.plan import BadTests, standard_names
from agentrl.rewards.unit_tests.tester import CANDIDATE
from agentrl.servers.sandbox.warm_watch import Watched, job_file, spent, watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.servers.sandbox.limits import Limits
    from agentrl.servers.sandbox.warm import WarmPool

MOST_VERDICT_BYTES = 4 * 2**20


def grade_functions(
    code: str | Sequence[str],
    tests: str | Sequence[str],
    *,
    entry: str | None = None,
    before: str = "",
    names: Sequence[str] = (),
    in_place: bool = False,
    limits: Limits = pools.LIMITS,
) -> CodeGrade:
    """Grade code by tests that call it. Raises `SandboxUnavailable`.

    Args:
        code: of the candidate, a whole module; several texts are run one after the other.
        tests: see `plan`.
        entry: name of the function or class that is tested, also known to the tests as `candidate`; found in the tests where None.
        before: trusted code of the data set's that the tests may use: imports, helpers.
        names: further names that the tests take from the candidate, even where Python has something of that name.
        in_place: whether what a call has changed in its arguments always comes back to the tests; by default only where it returns None,
            as functions that work in place do. A candidate could otherwise empty a list that it is then measured with.
        limits: of the candidate and of the tests, each.
    """
    try:
        compiled = compile_tests(tests if isinstance(tests, str) else tuple(tests), before)
        tested = {name for name in (entry, *names) if name}
        standard = standard_names(compiled.names - {CANDIDATE}, tested)
    except BadTests as error:
        return unscorable(str(error))
    wanted = (compiled.names - {CANDIDATE} - standard.keys()) | tested
    told = {"steps": compiled.steps, "before": compiled.before, "modules": compiled.modules, "in_place": in_place, "standard": standard}
    told |= {"entry": entry, "names": sorted(wanted)}
    seen = run_pair({"code": [code] if isinstance(code, str) else list(code)}, told, limits=limits, pool=pools.pool(), tester=pools.TESTER)
    total = compiled.num_cases
    return with_death(_verdict(seen, total, limits), seen, limits)


def run_pair(candidate: Mapping[str, Any], told: Mapping[str, Any], *, limits: Limits, pool: WarmPool, tester: str) -> Watched:
    """Run a candidate and a tester, joined by a channel; what the tester reports is the only output. Raises `SandboxUnavailable`."""
    verdicts, verdicts_in = os.pipe()
    requests, requests_in = os.pipe()
    answers, answers_in = os.pipe()
    lent = [verdicts_in, requests, requests_in, answers, answers_in]
    try:
        lent += (jobs := [job_file(json.dumps(job).encode()) for job in (candidate, told)])
        both = [(pools.CANDIDATE, [jobs[0], requests, answers_in]), (tester, [jobs[1], verdicts_in, requests_in, answers])]
        tested, testing = pool.start_together(both, limits=limits)
    except BaseException:
        os.close(verdicts)
        raise
    finally:
        for fd in lent:
            os.close(fd)
    return watch(testing, beside=[tested], limits=limits, read=[(verdicts, MOST_VERDICT_BYTES)])


def _verdict(seen: Watched, total: int, limits: Limits) -> CodeGrade:
    """Of what the tester reported; anything but exactly the verdicts that were due, and the end after them, fails."""
    lines = read_lines(seen.outputs[0])
    if lines and isinstance(lines[-1].get("broken"), str):
        return unscorable(lines[-1]["broken"])
    end = lines.pop() if lines and "end" in lines[-1] else None
    well_formed = all(line.keys() == {"case", "passed", "reason"} and type(line["passed"]) is bool for line in lines)
    if not well_formed or [line["case"] for line in lines] != list(range(len(lines))) or len(lines) > total:
        return failed("the tests reported something that is no verdict", total)
    cases = tuple(CaseGrade(passed=line["passed"], reason=str(line["reason"] or "")) for line in lines)
    if len(cases) < total:
        missing = CaseGrade(passed=False, reason=stopped(seen, limits))
        return of_cases((*cases, *(missing,) * (total - len(cases))))
    if end is None or end.get("end") != total:
        return failed(stopped(seen, limits), total)
    grade = of_cases(cases)
    if not end.get("wanted") or (grade.verdict == "pass" and not end.get("asked")):
        said = f", and failed: {grade.reason}" if grade.reason else ""
        return unscorable(f"the tests never asked the candidate for anything{said}; name what they test in `entry`")
    if grade.verdict == "pass" and not end.get("assertions"):
        return failed("no assertion of the tests was reached with what the candidate answered", total)
    return grade


def read_lines(data: bytes) -> list[dict[str, Any]]:
    """The lines of JSON objects that a tester wrote; whatever is none becomes an empty object, which is no verdict."""
    lines: list[dict[str, Any]] = []
    for text in data.splitlines():
        line: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
        lines.append(line if isinstance(line, dict) else {})
    return lines


def with_death(grade: CodeGrade, seen: Watched, limits: Limits) -> CodeGrade:
    """The grade, its reason completed where the candidate's process was ended early."""
    ended = next((one for one in seen.beside if one.status == "signalled"), None)
    if grade.verdict != "fail" or ended is None:
        return grade
    how = f"more than {limits.cpu_s:g} s of processor time" if spent(ended) else f"signal {ended.code}"
    return dataclasses.replace(grade, reason=f"{grade.reason} (the candidate's process was ended: {how})")


def stopped(seen: Watched, limits: Limits) -> str:
    """Why the tests did not come to their end."""
    if seen.stop == "timeout":
        return f"not done within {limits.wall_s:g} s"
    if seen.stop == "memory":
        return f"more than {limits.memory_mib} MiB of memory"
    if seen.stop == "cpu" or spent(seen.ended):
        return f"more than {limits.cpu_s:g} s of processor time"
    return "the tests did not come to their end"
