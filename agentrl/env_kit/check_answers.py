"""Checks of what answers score: solutions, answers that take no skill, and the same answer twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from agentrl.env_kit.finding import Finding, judged, plural, skipped
from agentrl.env_kit.kit import FULL, Case, each, of_all
from agentrl.env_kit.scripts import HUGE, TRIVIAL, in_turn

if TYPE_CHECKING:
    from agentrl.env_kit.kit import Kit
    from agentrl.env_kit.model import Say
    from agentrl.env_kit.stage import Played, Stage

MOST_TRIVIAL_TASKS = 4
MOST_TRIVIAL_TURNS = 8
MOST_SHARE = 0.25
"""A trivial answer that is right more often than this is a fault, one that is right at all a warning: chance may do that."""
BROKEN = "environment_error"
MOST_UNSCORABLE = 0.1


async def play_golden(kit: Kit) -> list[Played]:
    """Play the solutions that there are."""
    cases = [case for case in kit.cases if case.golden]
    played = await each(cases, lambda case: case.solve(kit.here, "the solution"), at_once=1)
    found = [of_all(one) for one in played]
    kit.golden_scores = {one.rollout.task.id: one.rollout.score.value for one in found if one.rollout.score.value is not None}
    return found


def check_golden(kit: Kit, played: list[Played]) -> Finding:
    """Solutions score 1, or at least no less than anything else that was tried."""
    first = kit.facts[0]
    faults = [f"row {number}: {fault}" for number, fault in first.golden_faults.items()]
    if not played and not faults:
        return skipped("golden answers", "the environment does not define golden(task): nothing shows that a right answer scores as one")
    best: defaultdict[str, float] = defaultdict(float)
    for one in kit.played:
        best[one.rollout.task.id] = max(best[one.rollout.task.id], one.rollout.score.value or 0.0)
    for one in played:
        value, task = one.rollout.score.value, one.rollout.task
        if value is None or not (value >= FULL or value >= best[task.id] > 0):
            other = f", and another answer {best[task.id]:g}" if value is not None and best[task.id] > value else ""
            faults.append(f"task {task.id}: the solution got {one.outcome}{other}")
    missing = len(kit.cases) - len(played)
    values = [one.rollout.score.value for one in played if one.rollout.score.value is not None]
    mean = sum(values) / len(values) if values else 0.0
    return judged(
        "golden answers",
        f"the solutions of {plural(len(played), 'task')} played" + (f"; {missing} have none" if missing else ""),
        f"all score as right ones, {mean:g} on average",
        faults=faults,
        advice="golden(task) and score() must agree on what is right, within max_turns; mend the row, its gold, or the grader",
        facts={"solutions": len(played), "mean": mean},
    )


async def check_trivial(kit: Kit) -> Finding:
    """Answers that take no skill do not score as solutions do, and break no episode."""
    cases = kit.cases[:MOST_TRIVIAL_TASKS]
    jobs = [(name, say, case) for name, say in TRIVIAL.items() for case in (cases[:1] if name in HUGE else cases)]
    jobs += [("a solution inside reasoning", _hidden(case), case) for case in cases if case.golden and len(case.golden) == 1]

    async def play(job: tuple[str, Say, Case]) -> tuple[Played, Case]:
        name, say, case = job
        return of_all(await kit.here.play(case.task, say, name, max_turns=2 if name in HUGE else MOST_TRIVIAL_TURNS)), case

    played = await each(jobs, play)
    values: defaultdict[str, list[float]] = defaultdict(list)
    right: Counter[str] = Counter()
    for one, case in played:
        if (value := one.rollout.score.value) is not None:
            values[one.what].append(value)
            right[one.what] += value >= kit.top(case)
    sided = kit.sided and not kit.golden_scores
    paid = {} if sided else {name: count for name, count in right.items() if count}
    said = {name: f"{name!r} scores as a right answer in {count} of {len(values[name])} tasks" for name, count in paid.items()}
    often = [text for name, text in said.items() if paid[name] > MOST_SHARE * len(values[name])]
    broken: defaultdict[str, set[str]] = defaultdict(set)
    for one, _ in played:
        if one.rollout.ending == BROKEN:
            broken[one.rollout.reason].add(repr(one.what))
    best = {name: max(scores) for name, scores in values.items()}
    return judged(
        "trivial answers",
        f"{plural(len(TRIVIAL), 'trivial answer')} to {plural(len(cases), 'task')}",
        "the model also plays against itself here: who wins says nothing"
        if sided
        else f"none scores as a right answer; the best got {max(best.values(), default=0.0):g}",
        faults=[*often, *(f"broke the episode, {', '.join(sorted(names)[:3])}: {reason}" for reason, names in broken.items())],
        warnings=[text for text in said.values() if text not in often],
        advice="a model finds such an answer long before it learns the task: let score() ask for the answer alone, at its own place, and "
        "give a 0 to what it cannot read",
        facts={"best": best},
    )


async def check_determinism(kit: Kit) -> Finding:
    """The same turns score the same in two processes."""
    faults: list[str] = []
    warnings: list[str] = []
    jobs = [(case, name) for case in kit.cases for name in ("best", "nothing")]
    for case, name, ours, theirs in await each(jobs, lambda job: _twice(kit, *job), at_once=1):  # what is shared is another check's
        if ours.signature != theirs.signature:
            faults.append(f"{case.name}, {name}: {ours.outcome} in one process and {theirs.outcome} in another")
        elif ours.rollout.messages != theirs.rollout.messages:
            warnings.append(f"{case.name}: the conversation differs between two processes, at message {_first_difference(ours, theirs)}")
    return judged(
        "determinism",
        f"{plural(2 * len(kit.cases), 'conversation')} played in two processes",
        "scores, parts, rewards of turns and conversations are the same",
        faults=faults,
        warnings=warnings,
        advice="seed what is drawn at random with the task's row; do not score by clocks, set order or the state of the process",
    )


def check_scores(kit: Kit) -> Finding:
    """The environment scores what it is given: NaN, infinities, None, texts and wrong counts are no scores."""
    ended = [one for one in kit.played if one.rollout.ending != "timeout"]
    unscorable = [one for one in ended if one.rollout.score.value is None]
    share = len(unscorable) / len(ended) if ended else 0.0
    reasons = [f"{one.rollout.reason or one.rollout.score.reason}" for one in unscorable]
    said = [f"{len(unscorable)} of {len(ended)} episodes could not be scored", *reasons] if unscorable else []
    return judged(
        "scores",
        f"the scores of all {plural(len(ended), 'episode')} that were played",
        "each is a finite number",
        faults=said if share > MOST_UNSCORABLE else (),
        warnings=said if share <= MOST_UNSCORABLE else (),
        advice="score() must return a finite number, named parts, or a Score; a wrong or odd answer is a 0, and only a fault of the "
        "environment itself is unscorable",
        facts={"episodes": len(ended), "unscorable": len(unscorable)},
    )


async def _twice(kit: Kit, case: Case, name: str) -> tuple[Case, str, Played, Played]:
    what = ("the solution" if case.golden else "play by chance") if name == "best" else "nothing"

    async def play(stage: Stage) -> Played:
        return of_all(await (case.solve(stage, what) if name == "best" else stage.play(case.task, TRIVIAL["nothing"], what)))

    ours, theirs = await each([kit.here, kit.there], play)
    return case, what, ours, theirs


def _hidden(case: Case) -> Say:
    assert case.golden
    return in_turn(f"<think>{case.golden[-1]}")


def _first_difference(ours: Played, theirs: Played) -> int:
    pairs = zip(ours.rollout.messages, theirs.rollout.messages, strict=False)
    shorter = min(len(ours.rollout.messages), len(theirs.rollout.messages))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)
