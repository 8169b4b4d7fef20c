"""`agentrl env test`: tries to break an environment before a model is trained in it."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from agentrl.env_kit.ask import ask_twice
from agentrl.env_kit.check_answers import check_determinism, check_golden, check_scores, check_trivial, play_golden
from agentrl.env_kit.check_hold import check_cancellation, check_cost, check_deadlines, check_leaks, check_parallel
from agentrl.env_kit.check_play import check_calls, check_chance
from agentrl.env_kit.check_rows import check_close, check_tasks
from agentrl.env_kit.check_start import check_start
from agentrl.env_kit.finding import Finding, Report, judged, skipped
from agentrl.env_kit.kit import MOST_TIMEOUTS, Case, Kit
from agentrl.env_kit.stage import Stage
from agentrl.errors import ConfigError, WorkerDied
from agentrl.records import Task
from agentrl.scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agentrl.env_kit.probe import Facts

LOAD_S = 120.0
"""Longest time for the environment to import and to give its tasks."""
MOST_CHECK_S = 300.0
"""Longest time for one check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an environment is tested."""

    num_tasks: int = 8
    """Training tasks that are played, spread over the split."""
    timeout_s: float = 30.0
    """Deadline of each start, tool call, reply and score; that of a run by default."""
    seed: int = 0
    """Of play by chance."""
    policies: tuple[str, ...] = ()
    """Names of further policies that the environment asks; all of them say what the model says."""
    imports: tuple[str, ...] = ()
    """Modules or files that each process imports first."""


def try_environment(spec: str, options: Options | None = None, *, on_check: Callable[[str], None] = lambda name: None) -> Report:
    """Test an environment in processes of its own; nothing of its code runs in this one.

    Args:
        spec: the environment, as in a run file.
        options: how.
        on_check: told the name of each check before it begins.

    Raises `ConfigError` where the spec names nothing, or what it names cannot be made.
    """
    options = options or Options()
    started = time.monotonic()
    with ScratchFolder("akit-") as folder:  # short: sockets in the worker's TMPDIR lie below it
        on_check("tasks")
        within_s = LOAD_S + options.num_tasks * options.timeout_s
        facts = ask_twice(spec, options.imports, options.num_tasks, folder, timeout_s=options.timeout_s, within_s=within_s)
        if facts[0].stage == "import":
            raise ConfigError(facts[0].wrong)
        findings = [check_tasks(*facts)]
        cases = _cases(spec, facts[0])
        if cases:
            findings += trio.run(_played, spec, options, facts, cases, folder, on_check)
            findings.append(check_close(facts[0]))
    return Report(spec=spec, findings=tuple(findings), seconds=time.monotonic() - started)


def _cases(spec: str, facts: Facts) -> list[Case]:
    golden = [*facts.golden, *[None] * len(facts.rows)]
    return [
        Case(number=number, task=Task.from_row(spec, row), golden=tuple(turns) if turns else None)
        for number, row, turns in zip(facts.numbers, facts.rows, golden, strict=False)
    ]


async def _played(
    spec: str, options: Options, facts: tuple[Facts, Facts], cases: list[Case], folder: Path, on_check: Callable[[str], None]
) -> list[Finding]:
    """What the checks find that play episodes."""
    found: list[Finding] = []

    def stage(name: str) -> Stage:
        return Stage(spec, options.imports, timeout_s=options.timeout_s, policies=options.policies, folder=folder / name)

    try:
        async with stage("a") as here, stage("b") as there:
            kit = Kit(spec=spec, timeout_s=options.timeout_s, seed=options.seed, facts=facts, cases=cases, here=here, there=there)
            await _each_check(kit, found, on_check)
    except WorkerDied as error:
        advice = "the process of an environment must not end by itself"
        found.append(judged("workers", "keeping a worker process", "", faults=[str(error)], advice=advice))
    return found


async def _each_check(kit: Kit, found: list[Finding], on_check: Callable[[str], None]) -> None:
    async def golden_and_trivial() -> Finding:
        """Solutions are played first, because trivial answers are held against them, and judged against all that was seen."""
        played = await play_golden(kit)
        trivial = await check_trivial(kit)
        found.append(check_golden(kit, played))
        return trivial

    checks: dict[str, Callable[[], Awaitable[Finding] | Finding]] = {
        "start": lambda: check_start(kit),
        "determinism": lambda: check_determinism(kit),
        "play by chance": lambda: check_chance(kit),
        "trivial answers": golden_and_trivial,
        "malformed calls": lambda: check_calls(kit),
        "parallel sessions": lambda: check_parallel(kit),
        "cancellation": lambda: check_cancellation(kit),
        "leaks": lambda: check_leaks(kit),
        "cost": lambda: check_cost(kit),
        "deadlines": lambda: check_deadlines(kit),
        "scores": lambda: check_scores(kit),
    }
    for name, check in checks.items():
        on_check(name)
        found.append(await _within(kit, name, check))


async def _within(kit: Kit, name: str, check: Callable[[], Awaitable[Finding] | Finding]) -> Finding:
    """What a check finds, unless it takes too long or makes no sense any more."""
    if not kit.cases:
        return skipped(name, "no task starts")
    if kit.timeouts >= MOST_TIMEOUTS and name not in ("deadlines", "scores"):
        return skipped(name, f"{kit.timeouts} episodes ran out of time before; see deadlines")
    with trio.move_on_after(MOST_CHECK_S):
        finding = check()
        return await finding if inspect.isawaitable(finding) else finding
    return judged(name, f"it was given {MOST_CHECK_S:g} s", "", faults=["it did not end"], advice="play fewer tasks: --num-tasks")
