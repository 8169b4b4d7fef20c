"""The buffer between generators and learner: admission, finished groups and their durable log behind one lock.

Generators get groups to play from `dispatch`, which gives none while the staleness budget is spent; the learner gets whole steps from
`take`, which waits for the oldest dispatch. Nothing polls: a finished group or a done step wakes whoever waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.dispositions import all_members, has_signal, member_dispositions
from agentrl.errors import AgentRLError, RunCannotLearn
from agentrl.records import Disposition, Group, Task, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from agentrl.admission import Admission
    from agentrl.config import LimitsConfig
    from agentrl.curriculum import Curriculum, TaskState
    from agentrl.objectives import Needs
    from agentrl.rollout_log import RolloutLog
    from agentrl.run_folder import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A group to play."""

    index: int
    task: Task
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferCounts:
    """What the buffer has seen since the run or the resume started."""

    unscorable_groups: int
    unscorable_share: float
    """Of the last `limits.window_groups` groups."""
    requeued: int
    filtered_groups: int
    """Groups of equal rewards in whose place others were played."""
    waiting: int
    """Finished groups that no step has taken yet."""
    in_flight: int
    endings: dict[str, int]
    tasks: dict[str, float]
    """Of the curriculum, by metric."""


class Buffer:
    """Owned by the supervisor's process; every method may be called from any thread."""

    def __init__(
        self, admission: Admission, tasks: Curriculum, log: RolloutLog, limits: LimitsConfig, *, lineage: int, needs: Needs
    ) -> None:
        self._admission = admission
        self._tasks = tasks
        self._log = log
        self._limits = limits
        self._lineage = lineage
        self._needs = needs
        self._changed = threading.Condition()
        self._groups: dict[int, Group] = {}
        self._failure: AgentRLError | None = None
        self._recent: deque[bool] = deque(maxlen=limits.window_groups)
        self._endings: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._unscorable = 0
        self._requeued = 0
        self._filtered = 0
        self._filtered_in_a_row = 0
        self.on_open: Callable[[], None] = lambda: None
        """Called, without the lock, when groups may have become free to dispatch."""
        self.on_finished: Callable[[], None] = lambda: None
        """Called, without the lock, when a group is finished."""
        self.on_cancel: Callable[[int], None] = lambda index: None
        """Called, without the lock, for a group whose episodes are no longer wanted."""

    def restore(self, state: RunState, disposed: Collection[int], groups: Iterable[Group]) -> None:
        """Take up an interrupted run.

        Args:
            state: of the checkpoint, or of step 0 where there is none.
            disposed: groups whose disposition stands.
            groups: finished and not disposed of; they keep their places and are not played again. Every other group that was dispatched
                waits for its place to come up again.
        """
        next_index = max([state.next_index, *(index + 1 for index in disposed)])
        gone = set(disposed)
        for group in groups:
            next_index = max(next_index, group.index + 1)
            refused = self._refused(group)
            self._tasks.learned(group, scorable=refused != "unscorable")
            if refused is None:
                self._groups[group.index] = group
            else:  # the crash came between its two lines
                gone.add(group.index)
                self._log.dispose(group.index, all_members(refused, len(group.rollouts)))
        finished = {index: group.dispatched.step for index, group in self._groups.items()}
        waiting = [index for index in range(next_index) if index not in gone and index not in finished]
        places_trained = state.step * self._admission.groups_per_step  # by today's steps: a resume may have changed their size
        self._admission.restore(
            version=state.step, places_trained=places_trained, next_index=next_index, finished=finished, waiting=waiting
        )

    def _refused(self, group: Group) -> Disposition | None:
        """What becomes of a group that cannot be trained, or that dynamic sampling leaves out; None for one that is to be trained."""
        if sum(score is not None for score in group.scores) < min(self._needs.group_size, len(group.rollouts)):
            return "unscorable"
        return "filtered" if self._needs.signal and not has_signal(group, self._needs) else None

    def dispatch(self) -> Dispatch | None:
        """The next group to play, or None while the staleness budget is spent, the data has ended or the run has failed."""
        with self._changed:
            if self._failure is not None:
                return None
            index = self._admission.admit()
            if index is None:
                return None
            version = Version(lineage=self._lineage, step=self._admission.version)
            try:
                return Dispatch(index=index, task=self._tasks.task(index), version=version)
            except AgentRLError as error:
                self._failure = error
                self._changed.notify_all()
                return None

    def finished(self, group: Group) -> None:
        """A group came back: make it durable, then let a step take it, or give its place back when it cannot be trained."""
        with self._changed:
            if group.index not in self._admission.places:
                return  # cancelled while its last message was under way
            try:
                self._log.write(group)
                self._account(group)
            except AgentRLError as error:
                self._failure = self._failure or error
            self._changed.notify_all()
        self.on_finished()
        self.on_open()

    def _account(self, group: Group) -> None:
        refused = self._refused(group)
        self._tasks.learned(group, scorable=refused != "unscorable")
        self._endings.update(rollout.ending for rollout in group.rollouts)
        self._recent.append(refused != "unscorable")
        if refused is None:
            self._filtered_in_a_row = 0
            self._admission.finish(group.index)
            self._groups[group.index] = group
            return
        self._admission.give_back(group.index)
        self._log.dispose(group.index, all_members(refused, len(group.rollouts)))
        if refused == "filtered":
            self._filtered += 1
            self._filtered_in_a_row += 1
            self._stop_if_nothing_differs(group)
            return
        self._unscorable += 1
        self._reasons.update(rollout.score.reason for rollout in group.rollouts if not rollout.score.scorable)
        self._stop_if_hopeless()

    def _stop_if_nothing_differs(self, group: Group) -> None:
        if self._filtered_in_a_row >= self._limits.max_filtered_groups:
            raise RunCannotLearn(
                f"in each of the last {self._filtered_in_a_row} groups that could be scored all rewards were equal (in the last one "
                f"{next(score for score in group.scores if score is not None):g}), and dynamic sampling trains only groups in which they "
                "differ: take tasks that are neither solved nor hopeless, a larger group_size, or raise limits.max_filtered_groups"
            )

    def _stop_if_hopeless(self) -> None:
        enough = min(self._limits.window_groups, max(8, self._admission.groups_per_step))
        share = 1 - sum(self._recent) / len(self._recent)
        if len(self._recent) >= enough and share > self._limits.max_unscorable_share:
            reason, count = self._reasons.most_common(1)[0]
            raise RunCannotLearn(
                f"{share:.0%} of the last {len(self._recent)} groups could not be scored (limits.max_unscorable_share is "
                f"{self._limits.max_unscorable_share:.0%}); the commonest reason, {count} times: {reason}. Mend that, or raise the limit"
            )

    def lost(self, index: int) -> None:
        """The process that played a group died: it will be dispatched again in its old place."""
        with self._changed:
            if index in self._admission.places:
                self._admission.lose(index)
        self.on_open()

    def take(self) -> list[Group]:
        """The groups of the next step; waits for them. An empty list ends the data.

        Raises what stopped the run, or `RunCannotLearn` when nothing came within `limits.wait_s`.
        """
        deadline = time.monotonic() + self._limits.wait_s
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                indices = self._admission.ready()
                if indices is not None:
                    return [self._groups[index] for index in indices]
                cancelled = self._requeue()
                if cancelled:
                    continue
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise RunCannotLearn(
                        f"no full batch came within limits.wait_s={self._limits.wait_s:g} s: {self._describe()}; raise limits.wait_s, or "
                        "lower rollout.episode_timeout_s, which bounds each episode"
                    )

    def _requeue(self) -> list[int]:
        overdue = self._admission.overdue()
        for index in overdue:
            self._admission.give_back(index)
            self._log.dispose(index, ("dropped",))
            self._requeued += 1
        if overdue:
            threading.Thread(target=self._tell_cancelled, args=(overdue,), daemon=True).start()
        return overdue

    def _tell_cancelled(self, indices: list[int]) -> None:
        for index in indices:
            self.on_cancel(index)
        self.on_open()

    def trained(self, groups: list[Group]) -> None:
        """The step that trained these groups is published: note their dispositions and admit new groups."""
        with self._changed:
            step = self._admission.version + 1
            for group in groups:
                self._log.dispose(group.index, member_dispositions(group, self._needs), step=step)
                del self._groups[group.index]
            self._admission.step([group.index for group in groups])
        self.on_open()

    def drop_rest(self) -> None:
        """The run has done its steps: note what is left over, each exactly once."""
        with self._changed:
            for index in self._admission.places:
                group = self._groups.get(index)
                self._log.dispose(index, all_members("dropped", len(group.rollouts) if group else 1), at_end=True)
            self._log.sync()

    def fail(self, error: AgentRLError) -> None:
        """Stop the run with an error, from any thread; the first one counts."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    @property
    def failure(self) -> AgentRLError | None:
        """What stopped the run, if anything did."""
        return self._failure

    def close(self) -> None:
        """Close the log; groups that still arrive are ignored."""
        with self._changed:
            self._admission.places.clear()
            self._log.close()

    def sync(self) -> None:
        """Force the log to the disk."""
        with self._changed:
            self._log.sync()

    def known_tasks(self) -> tuple[TaskState, ...]:
        """What the curriculum knows, for a checkpoint."""
        with self._changed:
            return self._tasks.state()

    def cursor(self) -> tuple[int, int]:
        """Groups trained so far, and the index of the next new one."""
        with self._changed:
            return self._admission.places_trained, self._admission.next_index

    def is_ahead(self) -> bool:
        """Whether generation has finished another step's groups beside those that are being trained, or all that it may start."""
        with self._changed:
            waiting = len(self._groups) - self._admission.groups_per_step  # those of the step under way are among them
            return waiting >= self._admission.groups_per_step or len(self._groups) == len(self._admission.places)

    def counts(self) -> BufferCounts:
        """Counters for the metrics."""
        with self._changed:
            return BufferCounts(
                unscorable_groups=self._unscorable,
                unscorable_share=1 - sum(self._recent) / len(self._recent) if self._recent else 0.0,
                requeued=self._requeued,
                filtered_groups=self._filtered,
                waiting=len(self._groups),
                in_flight=len(self._admission.places) - len(self._groups),
                endings=dict(self._endings),
                tasks=self._tasks.counts(),
            )

    def why_nothing_came(self) -> str:
        """What kept every group from being trained, for an error."""
        with self._changed:
            return self._refused_so_far() or "the data ended before a group could be trained"

    def _refused_so_far(self) -> str:
        said = []
        if self._reasons:
            reason, count = self._reasons.most_common(1)[0]
            said.append(f"{self._unscorable} groups could not be scored; the commonest reason, {count} times: {reason}")
        if self._filtered:
            said.append(f"in {self._filtered} groups all rewards were equal, and dynamic sampling leaves those out")
        return "; ".join(said)

    def _describe(self) -> str:
        in_flight = len(self._admission.places) - len(self._groups)
        return (
            f"{len(self._groups)} groups are finished and {in_flight} in flight at version {self._admission.version}, "
            f"a step needs {self._admission.groups_per_step}" + "".join(f"; {text}" for text in [self._refused_so_far()] if text)
        )
