"""Checks of the environment kit on the zoo, in this process: workers are threads."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import trio
from rollout_fakes import ThreadHost

from agentrl.env_kit.ask import ask_twice
from agentrl.env_kit.kit import Case, Kit
from agentrl.env_kit.probe import Probe, Question
from agentrl.env_kit.stage import Stage
from agentrl.records import Task

ZOO = {
    found: str(file)
    for file in (Path(__file__).parent / "env_kit" / "zoo").glob("*.py")
    for found in re.findall(r"^(?:class|def) (\w+)", file.read_text(), re.MULTILINE)
}
"""The file of each environment of the zoo, by its name."""


def facts_of(name, tmp_path, *, num_tasks=4, imports=()):
    """What a probe of an environment of the zoo finds."""
    tmp_path.mkdir(exist_ok=True)
    probe = Probe(Question(spec=spec_of(name), imports=list(imports), num_tasks=num_tasks, timeout_s=5, answer=str(tmp_path / "facts")))
    probe.run()
    return probe.facts


def spec_of(name):
    """The spec of an environment of the zoo."""
    return name if ":" in name else f"{ZOO[name]}:{name}"


def checked(check, name, tmp_path, *, processes=0, timeout_s=20.0, num_tasks=4, policies=(), seed=0):
    """What a check of the kit finds in an environment of the zoo, with this many of its two workers as processes."""

    async def main():
        async with stage("a", process=processes > 0) as here, stage("b", process=processes > 1) as there:
            kit = Kit(spec=spec, timeout_s=timeout_s, seed=seed, facts=(facts, facts), cases=cases, here=here, there=there)
            found = check(kit)
            return await found if inspect.isawaitable(found) else found

    def stage(folder, *, process):
        launch = None if process else lambda slot: ThreadHost()
        return Stage(spec, (), timeout_s=timeout_s, policies=policies, folder=tmp_path / folder, launch=launch)

    tmp_path.mkdir(exist_ok=True)
    spec = spec_of(name)
    facts = (
        ask_twice(spec, (), num_tasks, tmp_path, timeout_s=5, within_s=60)[0]
        if processes
        else facts_of(name, tmp_path, num_tasks=num_tasks)
    )
    cases = [
        Case(number=number, task=Task.from_row(spec, row), golden=tuple(turns) if turns else None)
        for number, row, turns in zip(facts.numbers, facts.rows, facts.golden, strict=True)
    ]
    return trio.run(main)
