"""Checks of what a model may do to an environment: calls that are wrong or odd, and play by chance."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from agentrl.env_kit.finding import Finding, judged, plural, skipped
from agentrl.env_kit.kit import Case, each, of_all
from agentrl.env_kit.schema_values import bad_calls, function_of
from agentrl.env_kit.scripts import by_chance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.env_kit.kit import Kit
    from agentrl.env_kit.model import Seen
    from agentrl.env_kit.stage import Played

MOST_TOOLS = 16
EPISODES_A_TASK = 2
BROKEN = ("environment_error", "timeout")


class _Attack:
    """Says every bad call of one tool at once, then an answer."""

    def __init__(self, tool: int) -> None:
        self.tools: Sequence[Mapping[str, Any]] = ()
        self.calls: list[str] = []
        self._tool = tool

    def __call__(self, seen: Seen) -> str:
        if seen.number == 0 and seen.tools:
            self.tools = seen.tools
            self.calls = bad_calls(seen.tools[min(self._tool, len(seen.tools) - 1)], random.Random(self._tool))
            return "\n".join(self.calls)
        return "I give up."


async def check_calls(kit: Kit) -> Finding:
    """Malformed and odd calls of every tool come back as observations."""
    attacks = [_Attack(0)]
    case = kit.cases[0]
    played = [of_all(await kit.here.play(case.task, attacks[0], "malformed calls"))]
    names = [function_of(tool)["name"] for tool in attacks[0].tools]
    if not names:
        return skipped("malformed calls", "the model was offered no tools")
    attacks += [_Attack(number) for number in range(1, min(len(names), MOST_TOOLS))]
    more = await each(attacks[1:], lambda attack: kit.here.play(case.task, attack, "malformed calls"))
    played += map(of_all, more)
    faults = [fault for name, attack, one in zip(names, attacks, played, strict=False) for fault in _faults(kit, name, attack, one)]
    count = sum(len(attack.calls) for attack in attacks)
    longest = max(
        (len(str(message.get("content"))) for one in played for message in one.rollout.messages if message["role"] == "tool"), default=0
    )
    return judged(
        "malformed calls",
        f"{plural(count, 'call')} of {plural(len(attacks), 'tool')}: wrong types, missing and unknown arguments, 1 MB of text, broken "
        "Unicode, numbers beyond all bounds, values nested 5,000 deep",
        f"each came back as an observation, of at most {longest:,} characters",
        faults=faults,
        advice="a tool may raise anything, and the model reads it; only EnvironmentFailure, or a tool that takes down its process, ends "
        "the episode",
        facts={"calls": count, "longest_result": longest},
    )


async def check_chance(kit: Kit) -> Finding:
    """Play by chance never ends in an error of the environment."""
    jobs = [(case, number) for case in kit.cases for number in range(EPISODES_A_TASK)]

    async def play(job: tuple[Case, int]) -> Played:
        case, number = job
        return of_all(await kit.here.play(case.task, by_chance(f"{kit.seed}/{case.task.id}/{number}"), "play by chance"))

    played = await each(jobs, play)
    broken = [one.rollout.reason for one in played if one.rollout.ending in BROKEN]
    calls = sum(int(one.rollout.counters.get("tool/calls", 0)) for one in played)
    errors = sum(int(one.rollout.counters.get("tool/errors", 0)) for one in played)
    values = [one.rollout.score.value for one in played if one.rollout.score.value is not None]
    mean = sum(values) / len(values) if values else 0.0
    return judged(
        "play by chance",
        f"{plural(len(played), 'episode')} of valid calls and random texts, {plural(calls, 'call')}",
        f"no episode broke; {plural(errors, 'call')} gave an error; {mean:g} on average",
        faults=broken,
        advice="what a model can do by accident must not break an episode: answer it, or end the episode with a low score",
        facts={"episodes": len(played), "calls": calls, "errors": errors, "mean": mean},
    )


def _faults(kit: Kit, name: str, attack: _Attack, one: Played) -> list[str]:
    if one.rollout.ending in BROKEN:
        return [f"tool {name!r}: the episode ended: {one.rollout.reason}"]
    answered = sum(message["role"] == "tool" for message in one.rollout.messages)
    if not kit.plays and len(one.rollout.turns) > 1 and answered != len(attack.calls):
        return [f"tool {name!r}: {len(attack.calls)} calls got {answered} results"]
    return []
