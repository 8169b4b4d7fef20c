"""Who may be dispatched and which groups make the next step: the staleness bound as arithmetic, with no clock and no I/O.

Every dispatched group holds a place in dispatch order until it is given back (unscorable, filtered, cancelled). With `eta` for the
bound and B for the groups of a step, the group in place r is admitted once r < (eta + version + 1) * B. Steps take places in order,
so place r is trained by step r // B, and its staleness is at most eta: bounded without deleting anything.

With `order="finished"` a step takes the oldest of the finished groups, and waits only for those that would pass the bound by waiting
one step more. Volume alone does not bound age: see `blocking`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from agentrl.errors import AgentRLError


class Place(Enum):
    """What the group in a place is doing."""

    WAITING = "waiting"
    """Known, not dispatched: after a resume, a group that was in flight when the run died."""
    IN_FLIGHT = "in flight"
    FINISHED = "finished"


@dataclass
class Admission:
    """The places of a run; owned by one thread.

    Example, eta = 1 and B = 2 at version 0: places 0 to 3 are admitted; after the first step 4 and 5 are.
    """

    groups_per_step: int
    max_staleness: int
    order: Literal["dispatch", "finished"] = "dispatch"
    on_bound: Literal["wait", "requeue", "over"] = "wait"
    num_groups: int | None = None
    """Groups of the whole run, where the data ends; None for as many as the steps need."""
    version: int = 0
    """Optimizer steps done."""
    places_trained: int = 0
    next_index: int = 0
    """Index of the next new group."""
    places: dict[int, Place] = field(default_factory=dict)
    """Group index -> state of those that hold a place and are not trained, in dispatch order."""
    dispatched: dict[int, int] = field(default_factory=dict)
    """Group index -> version at dispatch."""

    @property
    def limit(self) -> int:
        """Places admitted so far."""
        return (self.max_staleness + self.version + 1) * self.groups_per_step

    @property
    def exhausted(self) -> bool:
        """Whether no new group will ever be dispatched."""
        return self.num_groups is not None and self.next_index >= self.num_groups

    def admit(self) -> int | None:
        """Dispatch the next group, or return None when the budget is spent or the data has ended."""
        place = self.places_trained
        for index, state in self.places.items():
            if place >= self.limit:
                return None
            if state is Place.WAITING:
                return self._dispatch(index)
            place += 1
        if place >= self.limit or self.exhausted:
            return None
        self.next_index += 1
        return self._dispatch(self.next_index - 1)

    def _dispatch(self, index: int) -> int:
        self.places[index] = Place.IN_FLIGHT
        self.dispatched[index] = self.version
        return index

    def finish(self, index: int) -> None:
        """A group came back and can be trained."""
        self._expect(index, Place.IN_FLIGHT)
        self.places[index] = Place.FINISHED

    def give_back(self, index: int) -> None:
        """A group came back and cannot be trained, or was cancelled: its place is free again."""
        self._expect(index, Place.IN_FLIGHT)
        self._forget(index)

    def lose(self, index: int) -> None:
        """A group's worker died: the same group waits to be dispatched again, in its old place."""
        self._expect(index, Place.IN_FLIGHT)
        self.places[index] = Place.WAITING
        del self.dispatched[index]

    def blocking(self) -> list[int]:
        """Groups in flight without which the next step must not go, or a later one would train past the bound.

        The oldest dispatch goes first, so the k-th group left over (from 0) is trained k // B steps after the next one at the earliest.
        It is not enough to look at ages now: young groups that overtake leave more old ones than the steps to come can take in time.
        """
        chosen = set(self._finished())
        left = [index for index in self.places if index not in chosen]
        late = [
            k
            for k, index in enumerate(left)
            if self.version + 1 + k // self.groups_per_step - self._dispatch_version(index) > self.max_staleness
        ]
        return [index for index in left[: late[-1] + 1] if self.places[index] is not Place.FINISHED] if late else []

    def ready(self) -> list[int] | None:
        """The groups of the next step, oldest dispatch first, or None while it has to wait.

        At the end of the data the last step may be smaller. An empty list says that there is nothing left to train.
        """
        if self.exhausted and all(state is Place.FINISHED for state in self.places.values()):
            return list(self.places)[: self.groups_per_step]
        if self.order == "dispatch" and self.on_bound == "wait":
            first = list(self.places.items())[: self.groups_per_step]
            whole = len(first) == self.groups_per_step and all(state is Place.FINISHED for _, state in first)
            return [index for index, _ in first] if whole else None
        finished = self._finished()
        if len(finished) < self.groups_per_step or (self.on_bound != "over" and self.blocking()):
            return None
        return finished

    def overdue(self) -> list[int]:
        """With `on_bound="requeue"`: the groups to cancel now, because only they keep a full step from starting."""
        if self.on_bound != "requeue" or len(self._finished()) < self.groups_per_step:
            return []
        return [index for index in self.blocking() if self.places[index] is Place.IN_FLIGHT]

    def _finished(self) -> list[int]:
        return [index for index, state in self.places.items() if state is Place.FINISHED][: self.groups_per_step]

    def _dispatch_version(self, index: int) -> int:
        """A group that waits to be dispatched again will carry a later version than now, never an older one."""
        return self.dispatched.get(index, self.version)

    def step(self, indices: list[int]) -> None:
        """The step that trained these groups is done and published."""
        for index in indices:
            self._expect(index, Place.FINISHED)
            self._forget(index)
        self.places_trained += len(indices)
        self.version += 1

    def restore(self, *, version: int, places_trained: int, next_index: int, finished: dict[int, int], waiting: list[int]) -> None:
        """Take up a run: finished groups (index -> version at dispatch) are kept, waiting ones are dispatched again in their old places."""
        self.version, self.places_trained, self.next_index = version, places_trained, next_index
        states = dict.fromkeys(finished, Place.FINISHED) | dict.fromkeys(waiting, Place.WAITING)
        self.places = {index: states[index] for index in sorted(states)}
        self.dispatched = dict(finished)

    def _forget(self, index: int) -> None:
        del self.places[index]
        self.dispatched.pop(index, None)

    def _expect(self, index: int, state: Place) -> None:
        if self.places.get(index) is not state:
            raise AgentRLError(f"group {index} is {self.places.get(index)}, expected {state}: the run's bookkeeping is broken")
