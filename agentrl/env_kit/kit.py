"""What the checks of one environment share: its tasks, two worker processes, and what has been found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import trio

from agentrl.env_kit.scripts import by_chance, in_turn
from agentrl.env_kit.stage import MOST_TURNS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentrl.env_kit.model import Say
    from agentrl.env_kit.probe import Facts
    from agentrl.env_kit.stage import Played, Stage
    from agentrl.env_kit.watch import Watch
    from agentrl.records import Task

T = TypeVar("T")
U = TypeVar("U")

AT_ONCE = 4
"""Episodes that are played side by side where nothing depends on it."""
FULL = 1.0
"""What a right answer scores, where no solution says otherwise."""
MOST_TIMEOUTS = 2
"""After so many episodes that ran out of time the checks that are left are skipped: each would wait as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A task to play."""

    number: int
    """Of its row."""
    task: Task
    golden: tuple[str, ...] | None
    """A solution's turns, where the environment knows one."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"row {self.number} (task {self.task.id})"

    @property
    def say(self) -> Say:
        """The solution, or else play by chance: the same in every episode of the task."""
        return in_turn(*self.golden) if self.golden else by_chance(self.task.id)

    async def solve(
        self, stage: Stage, what: str, *, before: Callable[[], Awaitable[None]] | None = None, watch: Watch | None = None
    ) -> Played | None:
        """Play it as well as is known; None where that was cancelled."""
        turns = max(MOST_TURNS, len(self.golden or ()) + 1)
        return await stage.play(self.task, self.say, what, before=before, watch=watch, max_turns=turns)


@dataclass(slots=True, kw_only=True)
class Kit:
    """The environment under test."""

    spec: str
    timeout_s: float
    seed: int
    facts: tuple[Facts, Facts]
    """Of two processes whose hashes differ."""
    cases: Sequence[Case]
    """Those that do not start are left out once that is known."""
    here: Stage
    there: Stage
    """A second process."""
    golden_scores: dict[str, float] = field(default_factory=dict)
    """By task."""

    @property
    def plays(self) -> bool:
        """Whether the environment plays its episodes itself."""
        return self.facts[0].plays

    @property
    def played(self) -> list[Played]:
        """Every episode so far."""
        return [*self.here.played, *self.there.played]

    @property
    def timeouts(self) -> int:
        """Episodes that ran out of time."""
        return sum(played.rollout.ending == "timeout" for played in self.played)

    @property
    def sided(self) -> bool:
        """Whether a model of the kit has also played for others: what it says may then win for the wrong side."""
        return any(not turn.trained for played in self.played for turn in played.rollout.turns)

    def top(self, case: Case) -> float:
        """What the best answer to a task scores, as far as that is known."""
        golden = self.golden_scores.get(case.task.id, 0.0)
        return golden if golden > 0 else FULL


async def each(items: Sequence[T], action: Callable[[T], Awaitable[U]], *, at_once: int = AT_ONCE) -> list[U]:
    """What an action gives for each item, in order, some of them side by side."""
    found: dict[int, U] = {}
    limit = trio.CapacityLimiter(at_once)

    async def one(index: int, item: T) -> None:
        async with limit:
            found[index] = await action(item)

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(one, index, item)
    return [found[index] for index in range(len(items))]


def of_all(one: Played | None) -> Played:
    """An episode that nobody cancelled."""
    assert one is not None
    return one
