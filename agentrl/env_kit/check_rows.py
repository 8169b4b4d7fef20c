"""Checks of what needs no episode: the tasks, and closing an environment that played none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.env_kit.finding import Finding, judged, plural, skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.env_kit.probe import Facts, SplitFacts

SLOW_LOAD_S = 10.0
SPLITS = ("train", "eval")


def check_tasks(first: Facts, second: Facts) -> Finding:
    """Both splits load, give the same rows in two processes, and have no row in common."""
    faults = list(_faults(first, second))
    found = first.splits
    said = ", ".join(f"{plural(split.count, 'row')} to {_purpose(name)}" for name, split in found.items())
    slowest = max((split.load_s for split in found.values()), default=0.0)
    looked = sum(len(split.digests) for split in found.values())
    return judged(
        "tasks",
        f"both splits in two processes with different hashes, {plural(looked, 'row')} looked at",
        f"{said}; loaded in {slowest:.2f} s; ids are unique, rows the same twice, no row in both splits",
        faults=faults,
        warnings=list(_warnings(first)),
        advice="tasks(split) must give the same rows in the same order each time: seed what is drawn, sort what comes out of a set, "
        "and keep evaluation rows out of training",
        facts={f"{name}_{key}": value for name, split in found.items() for key, value in (("rows", split.count), ("load_s", split.load_s))},
    )


def check_close(facts: Facts) -> Finding:
    """Closing works before an episode, and after its start."""
    if facts.wrong:
        return skipped("close", f"the process that asks did not get so far: {facts.wrong}")
    return judged(
        "close",
        "close() of an environment that was only made, and of one that has started",
        "raised nothing",
        faults=facts.close_faults,
        advice="close() is also called where start failed: free only what there is",
    )


def _purpose(split: str) -> str:
    return "train" if split == "train" else "evaluate"


def _faults(first: Facts, second: Facts) -> Iterator[str]:
    if first.wrong:
        yield first.wrong
    for name in SPLITS:
        ours, theirs = first.splits.get(name), second.splits.get(name)
        if ours is None:
            continue
        if ours.fault:
            yield ours.fault
        elif name == "train" and not ours.count:
            yield "tasks('train') is empty"
        if theirs is not None and not ours.fault:
            yield from _differences(name, ours, theirs)
        yield from _twice(name, ours)
    both = {digest: number for number, digest in _digests(first, "train")}
    shared = [(number, both[digest]) for number, digest in _digests(first, "eval") if digest in both]
    if shared:
        held_out, trained = shared[0]
        yield f"evaluation rows that also occur in train: {len(shared)}, the first as rows {held_out} and {trained}"


def _differences(name: str, ours: SplitFacts, theirs: SplitFacts) -> Iterator[str]:
    if theirs.fault:
        yield f"in a second process, {theirs.fault}"
    elif ours.count != theirs.count:
        yield f"{name} has {ours.count} rows in one process and {theirs.count} in another"
    elif changed := [number for number, digest in ours.digests.items() if theirs.digests.get(number, digest) != digest]:
        yield f"{name} row {changed[0]} differs in a second process, and so do {len(changed) - 1} other rows of those looked at"


def _twice(name: str, split: SplitFacts) -> Iterator[str]:
    """Different rows under one id."""
    seen: dict[str, int] = {}
    for number, task in split.ids.items():
        other = seen.setdefault(task, number)
        if split.digests[other] != split.digests[number]:
            yield f"{name} rows {other} and {number} are different and have one id, {task!r}"
            return


def _warnings(facts: Facts) -> Iterator[str]:
    for name, split in facts.splits.items():
        if name == "eval" and not split.count and not split.fault:
            yield "tasks('eval') is empty: nothing can be evaluated"
        repeated = len(split.digests) - len(set(split.digests.values()))
        if repeated:
            yield f"{name} rows that repeat another: {repeated} of {len(split.digests):,} that were looked at"
        if split.load_s > SLOW_LOAD_S:
            yield f"{name} took {split.load_s:.1f} s to load, in every process that needs it"


def _digests(facts: Facts, name: str) -> Iterator[tuple[int, str]]:
    split = facts.splits.get(name)
    yield from split.digests.items() if split is not None else ()
