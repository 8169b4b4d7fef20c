"""The staleness bound on a simulated clock: random durations, outcomes and step times; nothing here sleeps."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.admission import Admission, Place


@dataclass
class Simulation:
    """Plays a run on a clock of its own: an event heap of finishing groups and finishing steps."""

    admission: Admission
    random: random.Random
    num_steps: int
    failing: float
    now: float = 0.0
    staleness: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    given_back: list[int] = field(default_factory=list)

    def run(self) -> None:
        events: list[tuple[float, int, str, list[int]]] = []
        sequence = 0
        stepping = False
        while self.admission.version < self.num_steps:
            for index in iter(self.admission.admit, None):
                sequence += 1
                heapq.heappush(events, (self.now + self.random.lognormvariate(0, 1.5), sequence, "group", [index]))
            in_flight = sum(state is Place.IN_FLIGHT for state in self.admission.places.values())
            assert self.admission.places_trained + len(self.admission.places) <= self.admission.limit
            if not stepping:
                for index in self.admission.overdue():
                    self.admission.give_back(index)
                    self.given_back.append(index)
                    events = [event for event in events if event[3] != [index]]
                    heapq.heapify(events)
                batch = self.admission.ready()
                if batch == []:
                    return
                if batch is not None:
                    self.staleness += [self.admission.version - self.admission.dispatched[index] for index in batch]
                    stepping = True
                    sequence += 1
                    heapq.heappush(events, (self.now + self.random.expovariate(1.0), sequence, "step", batch))
                    continue
            if (
                not events
                and self.admission.overdue() == []
                and self.admission.places_trained + len(self.admission.places) < self.admission.limit
            ):
                continue
            assert events, f"stuck: {in_flight} in flight, no event will ever come"
            self.now, _, kind, indices = heapq.heappop(events)
            if kind == "step":
                self.admission.step(indices)
                self.trained += indices
                stepping = False
            elif self.random.random() < self.failing:
                self.admission.give_back(indices[0])
                self.given_back.append(indices[0])
            else:
                self.admission.finish(indices[0])


@settings(max_examples=150, deadline=None)
@given(
    eta=st.integers(0, 4),
    groups_per_step=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    failing=st.sampled_from([0.0, 0.2, 0.7]),
    order=st.sampled_from(["dispatch", "finished"]),
    on_bound=st.sampled_from(["wait", "requeue"]),
)
def test_staleness_never_passes_the_bound_and_the_loop_never_sticks(eta, groups_per_step, seed, failing, order, on_bound):
    admission = Admission(groups_per_step=groups_per_step, max_staleness=eta, order=order, on_bound=on_bound)
    simulation = Simulation(admission, random.Random(seed), num_steps=15, failing=failing)
    simulation.run()
    assert admission.version == 15
    assert max(simulation.staleness) <= eta
    assert min(simulation.staleness) >= 0
    assert len(set(simulation.trained)) == 15 * groups_per_step
    assert not set(simulation.trained) & set(simulation.given_back)
    if order == "dispatch" and on_bound == "wait":
        kept = [index for index in range(admission.next_index) if index not in simulation.given_back]
        assert simulation.trained == kept[: len(simulation.trained)], "trained groups are a prefix of dispatch order"


def test_volume_alone_would_pass_the_bound():
    """The bound of the design is needed: without waiting for old groups, ages run away."""
    worst = 0
    for seed in range(20):
        simulation = Simulation(
            Admission(groups_per_step=4, max_staleness=1, on_bound="over"), random.Random(seed), num_steps=30, failing=0
        )
        simulation.run()
        worst = max(worst, *simulation.staleness)
    assert worst > 1


@settings(max_examples=60, deadline=None)
@given(
    num_groups=st.integers(1, 40),
    groups_per_step=st.integers(1, 16),
    eta=st.integers(0, 2),
    seed=st.integers(0, 1000),
    failing=st.sampled_from([0.0, 0.3]),
)
def test_data_that_ends_is_trained_once_each_with_a_smaller_last_step(num_groups, groups_per_step, eta, seed, failing):
    admission = Admission(groups_per_step=groups_per_step, max_staleness=eta, num_groups=num_groups)
    simulation = Simulation(admission, random.Random(seed), num_steps=1000, failing=failing)
    simulation.run()
    assert sorted(simulation.trained + simulation.given_back) == list(range(num_groups))


def test_eta_zero_admits_exactly_one_step():
    admission = Admission(groups_per_step=3, max_staleness=0)
    assert list(iter(admission.admit, None)) == [0, 1, 2]
    admission.finish(1)
    admission.finish(2)
    assert admission.ready() is None
    admission.finish(0)
    assert admission.ready() == [0, 1, 2], "dispatch order, whatever came first"
    assert admission.admit() is None
    admission.step([0, 1, 2])
    assert list(iter(admission.admit, None)) == [3, 4, 5]


def test_a_place_given_back_is_taken_by_a_new_group():
    admission = Admission(groups_per_step=2, max_staleness=0)
    assert list(iter(admission.admit, None)) == [0, 1]
    admission.give_back(0)
    assert admission.admit() == 2
    assert admission.admit() is None


def test_after_a_resume_lost_groups_wait_for_their_own_place():
    """Replayed groups fill places far past the restored version; a lost one among them must not be sampled too early."""
    admission = Admission(groups_per_step=2, max_staleness=1)
    admission.restore(version=0, places_trained=0, next_index=8, finished={0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 7: 2}, waiting=[6])
    assert admission.admit() is None, "place 6 opens at version 2"
    admission.step(admission.ready())
    assert admission.admit() is None
    admission.step(admission.ready())
    assert admission.admit() == 6
    assert admission.dispatched[6] == 2


def test_a_lost_worker_does_not_move_its_groups():
    admission = Admission(groups_per_step=2, max_staleness=0)
    assert list(iter(admission.admit, None)) == [0, 1]
    admission.finish(1)
    admission.lose(0)
    assert admission.admit() == 0
    admission.finish(0)
    assert admission.ready() == [0, 1]


def test_finishing_twice_is_refused():
    admission = Admission(groups_per_step=1, max_staleness=0)
    admission.admit()
    admission.finish(0)
    with pytest.raises(Exception, match="bookkeeping"):
        admission.finish(0)
