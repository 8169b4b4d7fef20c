"""Which task each place of dispatch order plays, beyond a plain shuffle: poison tasks are quarantined, and difficulty pools are drawn from.

The shuffled order of `TaskSource` stands. Where the task of a place is quarantined, or belongs to a pool of which only a share is wanted
and the draw goes against it, another task takes its place. What a draw depends on is the seed, the place, and what is known of the tasks
when the place is dispatched; that knowledge is part of every checkpoint.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

import msgspec

from agentrl.errors import RunCannotLearn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agentrl.config import CurriculumConfig
    from agentrl.records import Group, Task
    from agentrl.tasks import TaskSource

Pool = Literal["unknown", "easy", "medium", "hard", "quarantined"]

TRIES = 64
"""Draws for a substitute before a known one is taken."""
COUNTED = 16
"""Groups of a task that are remembered as counted; far fewer are finished and not yet trained."""
FRESH = 0.5
"""Weight of the newest group in a task's pass rate."""


class TaskState(msgspec.Struct, kw_only=True):
    """What is known of a task."""

    id: str
    row: int
    """Its number in the split."""
    failures: int = 0
    """Groups in a row of which too few rollouts could be scored."""
    rate: float | None = None
    """Share of rollouts that solved it, the newest group weighted most; None before there was one."""
    counted: tuple[int, ...] = ()
    """The newest groups that this is known from: a resume shows those again that no step had taken."""


class Curriculum:
    """The tasks of a run by place; owned by one thread.

    Args:
        source: the shuffled tasks.
        config: difficulty pools; None plays every task as it comes.
        quarantine_after: groups in a row that cannot be scored, after which a task is not played again; None never does that.
        seed: of the run.
    """

    def __init__(
        self, source: TaskSource, config: CurriculumConfig | None = None, *, quarantine_after: int | None = None, seed: int = 0
    ) -> None:
        self.say: Callable[[str], None] = lambda line: None
        """Told when a task is quarantined."""
        self._source = source
        self._config = config
        self._quarantine_after = quarantine_after
        self._seed = seed
        self._known: dict[int, TaskState] = {}
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._source)

    def task(self, place: int) -> Task:
        """The task of the group with this index. Raises `RunCannotLearn` where every task is quarantined."""
        row = self._source.row_at(place)
        pool = self.pool(row)
        draw = random.Random(f"{self._seed}/pool/{place}").random()
        if pool == "quarantined" or (pool in ("easy", "hard") and draw >= self._share(pool)):
            row = self._substitute(place)
        task = self._source.task_of(row)
        if self._config is not None or self._quarantine_after is not None:
            self._rows[task.id] = row
        return task

    def pool(self, row: int) -> Pool:
        """Where a task belongs, by what is known now."""
        state = self._known.get(row)
        if state is None:
            return "unknown"
        if self._quarantine_after is not None and state.failures >= self._quarantine_after:
            return "quarantined"
        if self._config is None or state.rate is None:
            return "unknown"
        if state.rate >= self._config.easy_rate:
            return "easy"
        return "hard" if state.rate <= self._config.hard_rate else "medium"

    def learned(self, group: Group, *, scorable: bool) -> None:
        """Take note of a finished group; `scorable` says whether enough of it could be scored."""
        if self._config is None and (self._quarantine_after is None or (scorable and not self._known)):
            return
        row = self._row_of(group)
        if row is None or (self._config is None and scorable and row not in self._known):
            return
        state = self._known.setdefault(row, TaskState(id=group.task.id, row=row))
        if group.index in state.counted:
            return
        state.counted = (*state.counted, group.index)[-COUNTED:]
        if not scorable:
            state.failures += 1
            if state.failures == self._quarantine_after:
                reason = next((one.score.reason for one in group.rollouts if not one.score.scorable), "")
                tries = f"{state.failures} groups in a row could not be scored"
                self.say(f"task {state.id} is not played again: {tries}, the last for: {reason}")
            return
        state.failures = 0
        if self._config is not None:
            solved = [score >= self._config.solved_at for score in group.scores if score is not None]
            rate = sum(solved) / len(solved)
            state.rate = rate if state.rate is None else (1 - FRESH) * state.rate + FRESH * rate

    def state(self) -> tuple[TaskState, ...]:
        """What is known, for a checkpoint."""
        return tuple(msgspec.structs.replace(state) for state in self._known.values() if state.failures or state.rate is not None)

    def restore(self, states: Iterable[TaskState]) -> None:
        """Take up what a checkpoint knew; not of rows that are no longer there."""
        for state in states:
            if state.row >= len(self._source):
                continue
            self._known[state.row] = state
            self._rows[state.id] = state.row

    def counts(self) -> dict[str, float]:
        """For the metrics: tasks in each pool."""
        pools = [self.pool(row) for row in self._known]
        counts = {"rollout/quarantined_tasks": float(pools.count("quarantined"))}
        if self._config is not None:
            counts |= {f"curriculum/{pool}": float(pools.count(pool)) for pool in ("easy", "medium", "hard")}
        return counts

    def _share(self, pool: Pool) -> float:
        assert self._config is not None
        return self._config.easy_share if pool == "easy" else self._config.hard_share

    def _substitute(self, place: int) -> int:
        """Another task: any that is neither quarantined nor known to be easy or hard; a medium one where those are rare."""
        stream = random.Random(f"{self._seed}/substitute/{place}")
        drawn = [stream.randrange(len(self._source)) for _ in range(TRIES)]
        wanted = next((row for row in drawn if self.pool(row) in ("unknown", "medium")), None)
        if wanted is not None:
            return wanted
        medium = [row for row in self._known if self.pool(row) == "medium"]
        if medium:
            return stream.choice(medium)
        free: int | None = next((row for row in (*drawn, *range(len(self._source))) if self.pool(row) != "quarantined"), None)
        if free is None:
            raise RunCannotLearn(
                f"all {len(self._source)} tasks are quarantined: each could not be scored {self._quarantine_after} times in a row; "
                "look at rollout/unscorable and at the reasons in rollouts/, or set limits.quarantine_after=null"
            )
        return free

    def _row_of(self, group: Group) -> int | None:
        """The row that a group played; after a resume it may be one whose task is not known by its id."""
        row = self._rows.get(group.task.id)
        if row is None:
            at = self._source.row_at(group.index)
            if self._source.task_of(at).id == group.task.id:
                self._rows[group.task.id] = row = at
        return row
