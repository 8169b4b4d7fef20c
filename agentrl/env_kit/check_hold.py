"""Checks of what episodes hold and leave behind: side by side, cut off, one after the other; and what they cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

import trio

from agentrl.env_kit.finding import Finding, judged, plural, skipped
from agentrl.env_kit.footprint import measurable, settled
from agentrl.env_kit.kit import AT_ONCE, Case, Kit, of_all
from agentrl.env_kit.probe import spread
from agentrl.env_kit.scripts import always
from agentrl.env_kit.stage import CLOSE_S
from agentrl.env_kit.watch import Watch
from agentrl.errors import EnvironmentFailure

if TYPE_CHECKING:
    from agentrl.env_kit.footprint import Footprint
    from agentrl.env_kit.stage import Played, Stage
    from agentrl.rollout.pool import EnvSession

SIDE_BY_SIDE = 8
MOST_CUTS = 12
"""Waits of an episode that are cut off, each before it begins and while it lasts."""
CONFIRMED = 3
"""What is left after a cancellation is looked for so often again."""
LEAK_ROUNDS = (4, 8, 8)
"""Episodes before the first measurement and between the others. What grows both times is taken for a leak: pools fill up and stop."""
LEAK_S = 30.0
"""Slow environments play fewer episodes."""
NEAR_SHARE = 0.25
"""Of a deadline; slower than this is worth a warning."""
ONE = {"processes": "process", "threads": "thread", "descriptors": "descriptor", "sockets": "socket", "files": "file"}
NOT_LINUX = "what a process holds can be read on Linux only"


class _Lockstep:
    """Holds each model's turn until every episode that still plays has come to one."""

    def __init__(self, count: int) -> None:
        self._playing = count
        self._waiting = 0
        self._all_here = trio.Event()

    async def turn(self) -> None:
        """Wait for the others."""
        self._waiting += 1
        event = self._all_here
        self._go_on()
        await event.wait()

    def left(self) -> None:
        """One episode has ended."""
        self._playing -= 1
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting >= self._playing:
            self._waiting = 0
            self._all_here.set()
            self._all_here = trio.Event()


async def check_parallel(kit: Kit) -> Finding:
    """Episodes that are played in lockstep in one process score as when they are played alone."""
    different = [kit.cases[index % len(kit.cases)] for index in range(SIDE_BY_SIDE)]
    same = [kit.cases[0]] * SIDE_BY_SIDE
    alone = {case.task.id: of_all(await case.solve(kit.there, "alone")) for case in kit.cases[:SIDE_BY_SIDE]}
    faults = []
    for what, cases in (("of different tasks", different), ("of one task", same)):
        for case, one in zip(cases, await _together(kit, cases), strict=True):
            if one.signature != alone[case.task.id].signature:
                faults.append(f"{case.name}: {alone[case.task.id].outcome} alone, {one.outcome} beside others {what}")
    return judged(
        "parallel sessions",
        f"{SIDE_BY_SIDE} episodes in lockstep in one process, of different tasks and of one",
        "they score as when they are played alone",
        faults=faults,
        advice="keep all state in the instance: class attributes, module globals, the working directory and fixed paths are shared by "
        "every episode in the process",
    )


async def _together(kit: Kit, cases: list[Case]) -> list[Played]:
    steps = _Lockstep(len(cases))
    found: dict[int, Played] = {}

    async def play(index: int, case: Case) -> None:
        try:
            found[index] = of_all(await case.solve(kit.here, "side by side", before=steps.turn))
        finally:
            steps.left()

    async with trio.open_nursery() as nursery:
        for index, case in enumerate(cases):
            nursery.start_soon(play, index, case)
    return [found[index] for index in range(len(cases))]


async def check_cancellation(kit: Kit) -> Finding:
    """An episode that is cancelled at any wait leaves nothing behind, and the next one is unharmed."""
    case, stage = kit.cases[0], kit.here
    watch = Watch()
    whole = of_all(await case.solve(stage, "before a cancellation", watch=watch))
    worker, waits = stage.worker, len(watch.begun)
    before = await settled(stage.footprint) if measurable() else None
    cuts = [(number, begun) for number in sorted({*spread(waits, MOST_CUTS), waits - 1}) for begun in (False, True)]
    faults: list[str] = []
    for number, begun in cuts:
        await case.solve(stage, "cancelled", watch=Watch(number, begun=begun))
        if before is not None and (now := await settled(stage.footprint, before)).beyond(before):
            faults += await _left_by_cut(kit, case, number, begun=begun, what=watch.begun[number], before=before)
            if faults:
                break
            before = now  # once, and not again: something that is made when it is first needed
    again = of_all(await case.solve(stage, "after cancellations"))
    if again.signature != whole.signature:
        faults.append(f"the next episode got {again.outcome} instead of {whole.outcome}")
    if stage.worker != worker:
        faults.append(f"the worker had to be ended: a call or close() went on for more than {CLOSE_S:g} s after the cancellation")
    return judged(
        "cancellation",
        f"an episode cancelled {plural(len(cuts), 'time')}, before and during {_which(waits)}",
        "nothing was left behind, and the next episode scores as before" if before else f"the next episode scores as before ({NOT_LINUX})",
        faults=faults,
        advice="free what an episode holds in close(), which is called once whatever happened; an async episode(task, llm) is cancelled "
        "where it awaits: clean up in `finally`",
        facts={"cuts": len(cuts)},
    )


async def _left_by_cut(kit: Kit, case: Case, number: int, *, begun: bool, what: str, before: Footprint) -> list[str]:
    """What is left each time that an episode is cancelled there; nothing where it was left once."""
    for _ in range(CONFIRMED):
        await case.solve(kit.here, "cancelled", watch=Watch(number, begun=begun))
    more = (await settled(kit.here.footprint, before)).beyond(before)
    left = {name: count for name, count in more.items() if count >= CONFIRMED}
    return [f"cancelled {'during' if begun else 'before'} {what}: {_left(left, CONFIRMED + 1, kit.here)}"] if left else []


async def check_leaks(kit: Kit) -> Finding:
    """Episodes one after the other leave no processes, files, descriptors, threads or sockets."""
    if not measurable():
        return skipped("leaks", NOT_LINUX)
    stage, worker = kit.here, kit.here.worker
    sizes: list[Footprint] = []
    count = 0
    with trio.move_on_after(LEAK_S) as scope:
        for episodes in LEAK_ROUNDS:
            for _ in range(episodes):
                case = kit.cases[count % len(kit.cases)]
                await (stage.play(case.task, always(""), "nothing") if count % 4 == 3 else case.solve(stage, "again"))
                count += 1
            sizes.append(await settled(stage.footprint, sizes[-1] if sizes else None))
    if scope.cancelled_caught and len(sizes) < len(LEAK_ROUNDS):
        return skipped("leaks", f"only {plural(count, 'episode')} in {LEAK_S:g} s", "the same tasks again and again in one process")
    if stage.worker != worker:
        return skipped("leaks", "the worker was lost meanwhile; see the other checks", "the same tasks again and again in one process")
    first, middle, last = sizes
    grown = last.beyond(middle) if middle.beyond(first) else {}
    lost = {name: last.beyond(first)[name] for name in grown if name in middle.beyond(first)}
    between = sum(LEAK_ROUNDS[1:])
    return judged(
        "leaks",
        f"{plural(count, 'episode')} in one process",
        f"no more processes ({last.processes}), threads ({last.threads}), descriptors ({last.descriptors}) and temporary files "
        f"({last.files}) than after the first {LEAK_ROUNDS[0]}",
        faults=[_left(lost, between, stage)] if lost else (),
        advice="close() must end processes, join threads, close files and sockets, and remove temporary files, also after an episode "
        "that failed",
        facts={"episodes": count, "memory_growth_mib": last.memory_mib - first.memory_mib},
    )


def _which(waits: int) -> str:
    return f"each of its {waits} waits" if waits <= MOST_CUTS else f"{MOST_CUTS} of its {waits} waits and the last"


def _left(more: dict[str, int], episodes: int, stage: Stage) -> str:
    names = sorted(path.name for path in stage.temporary.iterdir())[-2:] if "files" in more else []
    such = f", such as {' and '.join(names)}" if names else ""
    return f"after {episodes} episodes there is more than before: {', '.join(f'{name} +{count}' for name, count in more.items())}{such}"


async def check_cost(kit: Kit) -> Finding:
    """What an open episode holds."""
    tried = f"{SIDE_BY_SIDE} episodes started and held open"
    if not measurable():
        return skipped("cost", NOT_LINUX, tried)
    stage = kit.here
    before = await settled(stage.footprint)
    sessions: list[EnvSession] = []
    try:
        for index in range(SIDE_BY_SIDE):
            sessions.append(await stage.pool.open(kit.cases[index % len(kit.cases)].task))
        held = stage.footprint()
    except EnvironmentFailure as error:
        return judged("cost", tried, "", faults=[str(error)], advice="several episodes run in one process at once")
    finally:
        for session in sessions:
            session.close()
    an_episode = {name: count / SIDE_BY_SIDE for name, count in held.beyond(before).items()}
    memory = max(0.0, held.memory_mib - before.memory_mib) / SIDE_BY_SIDE
    holds = ", ".join(f"{count:g} {name if count != 1 else ONE[name]}" for name, count in an_episode.items())
    return judged(
        "cost",
        tried,
        f"an open episode holds {holds + ', ' if holds else ''}{memory:.1f} MiB; the worker itself {before.memory_mib:,.0f} MiB",
        facts={**an_episode, "episode_mib": memory, "worker_mib": before.memory_mib},
    )


def check_deadlines(kit: Kit) -> Finding:
    """Starts, tool calls, replies and scores keep well within their deadline."""
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for stage in (kit.here, kit.there):
        for name, times in stage.seconds.items():
            if name not in ("the model", "episode"):
                seconds[name] += times
    late = [one for one in kit.played if one.rollout.ending == "timeout" and "in another episode" not in one.rollout.reason]
    slow = [f"{name} took up to {max(times):.1f} s" for name, times in seconds.items() if max(times) > NEAR_SHARE * kit.timeout_s]
    each_took = ", ".join(f"{name} {1000 * statistics.median(times):.1f} ms" for name, times in list(seconds.items())[:6])
    calls = sum(map(len, seconds.values()))
    return judged(
        "deadlines",
        f"{plural(calls, 'call')} timed, each with {kit.timeout_s:g} s, up to {AT_ONCE} at once",
        f"medians: {each_took}" if each_took else "nothing was called",
        faults=[f"{one.what}: {one.rollout.reason}" for one in late],
        warnings=slow,
        advice="past its deadline a call is killed with its process, and the episode is unscorable: bound what it does, or raise "
        "rollout.tool_timeout_s and rollout.score_timeout_s",
        facts={f"{name}_ms": {"median": 1000 * statistics.median(times), "most": 1000 * max(times)} for name, times in seconds.items()},
    )
