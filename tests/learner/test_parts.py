"""Several optimizer steps in one step: who is in which, over which denominators."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rows import plain_gradients

from agentrl import objectives
from agentrl.errors import LearnerDiverged
from agentrl.learner import Learner
from agentrl.learner.batch import Part, parts_of
from agentrl.learner.samples import Sample
from agentrl.learner.signals import Credited, Signals
from agentrl.objectives import Needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.objectives import Losses, TokenBatch


def samples_of(lengths: list[int]) -> list[Sample]:
    return [
        Sample(
            group=place // 3,
            rows=(np.arange(length + 1, dtype=np.int32),),
            sources=(np.arange(1, length + 1),),
            targets=np.arange(length),
            sampler_logprobs=np.zeros(length, dtype=np.float32),
            masked=False,
        )
        for place, length in enumerate(lengths)
    ]


def cut(
    lengths: list[int], zeros: list[bool], needs: Needs, normalization: Any = "sequence_mean", *, skips: bool = False, seed: Any = (0, 0)
) -> list[Part]:
    samples = samples_of(lengths)
    credited = [
        Credited(place=place, advantages=np.full(length, 0.0 if zero else 1.0), columns={})
        for place, (length, zero) in enumerate(zip(lengths, zeros, strict=True))
    ]
    units: list[tuple[int, ...]] = [(place,) for place in range(len(lengths))]
    if needs.pairs:
        units = [(place, place + 1) for place in range(0, len(lengths) - 1, 2)]
    signals = Signals(credited=tuple(credited), units=tuple(units))
    return parts_of(samples, signals, needs, normalization=normalization, max_tokens=20, skips_zero=skips, seed=seed)


def places(part: Part) -> list[int]:
    return [one.credit.place for unit in part.active for one in unit]


MEMBERS = st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=14)


@settings(max_examples=80)
@given(members=MEMBERS, passes=st.integers(1, 4), minibatches=st.integers(1, 6), pairs=st.booleans(), seed=st.integers(0, 99))
def test_every_pass_goes_over_each_unit_once(members: list[Any], passes: int, minibatches: int, pairs: bool, seed: int) -> None:
    lengths, zeros = [length for length, _ in members], [zero for _, zero in members]
    needs = Needs(passes=passes, minibatches=minibatches, pairs=pairs)
    parts = cut(lengths, zeros, needs, seed=(seed, 1))
    units = len(lengths) // 2 if pairs else len(lengths)
    a_pass = min(minibatches, max(1, units))
    assert len(parts) == passes * a_pass
    for number in range(passes):
        own = parts[number * a_pass : (number + 1) * a_pass]
        assert sorted(place for part in own for place in places(part)) == list(range(2 * units if pairs else units))
        sizes = [len(part.active) for part in own]
        assert max(sizes) - min(sizes) <= 1
        for part in own:
            assert places(part) == sorted(places(part)), "members of a group stand together"
            assert part.num_pairs == (len(part.active) if pairs else 0)
            assert all(len(unit) == (2 if pairs else 1) for unit in part.active)
    assert [places(part) for part in parts] == [places(part) for part in cut(lengths, zeros, needs, seed=(seed, 1))]


def test_passes_are_drawn_anew_and_steps_too() -> None:
    needs = Needs(passes=2, minibatches=3)
    first = [places(part) for part in cut([1] * 12, [False] * 12, needs)]
    assert first[:3] != first[3:]
    assert first != [places(part) for part in cut([1] * 12, [False] * 12, needs, seed=(0, 1))]
    assert first != [places(part) for part in cut([1] * 12, [False] * 12, needs, seed=(1, 0))]


@settings(max_examples=80)
@given(
    members=MEMBERS,
    minibatches=st.integers(1, 4),
    normalization=st.sampled_from(["sequence_mean", "token_mean", "sequence_sum", "constant"]),
)
def test_denominators_are_those_of_the_optimizer_step(members: list[Any], minibatches: int, normalization: str) -> None:
    lengths, zeros = [length for length, _ in members], [zero for _, zero in members]
    needs = Needs(minibatches=minibatches)
    whole, skipping = (cut(lengths, zeros, needs, normalization, skips=skips) for skips in (False, True))
    for part, less in zip(whole, skipping, strict=True):
        own = [lengths[place] for place in places(part)]
        assert (part.num_rollouts, part.num_tokens) == (len(own), sum(own)) == (less.num_rollouts, less.num_tokens)
        assert places(less) == [place for place in places(part) if not zeros[place]]
        total = sum(one.token_weight * one.sample.num_trained for unit in part.active for one in unit)
        count = len(own) or 1
        expected = {
            "sequence_mean": 1.0,
            "token_mean": 1.0,
            "sequence_sum": sum(own) / count,
            "constant": sum(own) / (count * 20),
        }[normalization]
        assert total == pytest.approx(expected if own else 0.0)
        weights = {one.credit.place: (one.token_weight, one.rollout_weight) for unit in part.active for one in unit}
        for unit in less.active:
            assert weights[unit[0].credit.place] == (unit[0].token_weight, unit[0].rollout_weight)


class Seen:
    """A loss that keeps which rollouts it was given, optimizer step by optimizer step."""

    def __init__(self, name: str) -> None:
        self.row = objectives.get(name)
        self.steps: list[list[float]] = [[]]

    def loss(self, batch: TokenBatch, config: Any) -> Losses:
        self.steps[-1] += [round(float(batch.sampler_logprobs[batch.rollout == one].sum()), 5) for one in range(batch.num_rollouts)]
        return self.row.loss(batch, config)

    def learner(self, folder: str, objective: dict[str, Any], **learner: Any) -> Learner:
        row = dataclasses.replace(self.row, loss=self.loss)
        made = Learner(fakes.run_config(learner=learner), row, objectives.validate(objective), folder, master_dtype=torch.float64)
        made.models.optimizers[-1].register_step_post_hook(lambda *_: self.steps.append([]))
        return made


def marks(groups: list[Any]) -> list[float]:
    """What `Seen` knows each rollout by."""
    found = []
    for group in groups:
        for rollout in group.rollouts:
            found.append(round(float(sum(turn.span.logprobs[turn.span.sampled].astype(np.float64).sum() for turn in rollout.turns)), 5))
    assert len(set(found)) == len(found)
    return found


SEVERAL: list[dict[str, Any]] = [
    {"name": "grpo", "minibatches": 3, "epochs": 2, "beta": 0.1},
    {"name": "dapo", "minibatches": 2, "entropy_coef": 0.1, "dynamic_sampling": False},
    {"name": "decoupled_ppo", "minibatches": 5, "entropy_coef": 0.1, "normalization": "constant"},
    {"name": "ppo", "critic": "head", "epochs": 2, "minibatches": 2},
    {"name": "ppo", "critic": "model", "epochs": 1, "minibatches": 4, "normalization": "sequence_mean"},
    {"name": "rloo", "beta": 0.1, "minibatches": 2},
]


@pytest.mark.parametrize("objective", SEVERAL, ids=str)
def test_each_optimizer_step_is_that_of_plain_rows(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    """At rest every optimizer step starts from the same weights, so each is a step of its own rollouts alone."""
    folder = model_folder(kind="starcoder2")
    groups = fakes.make_groups(6, groups=2)
    rollouts = marks(groups)
    partitions = []
    for budget in (10_000, 30):
        seen = Seen(objective["name"])
        learner = fakes.shaken(seen.learner(folder, objective, tokens_per_micro_batch=budget))
        found = fakes.every_gradient(learner, groups)
        steps = [sorted(rollouts.index(mark) for mark in step) for step in seen.steps[:-1]]
        epochs, minibatches = objective.get("epochs", 1), objective["minibatches"]
        assert len(found) == len(steps) == epochs * minibatches
        for epoch in range(epochs):
            own = steps[epoch * minibatches : (epoch + 1) * minibatches]
            assert sorted(place for step in own for place in step) == list(range(len(rollouts)))
        partitions.append(steps)
    for step, gradient in zip(steps, found, strict=True):
        expected = plain_gradients(folder, learner, groups, objective, chosen=step)
        assert fakes.distance(gradient, expected) < 1e-12
    assert partitions[0] == partitions[1], "the packing decides nothing"


def test_minibatches_without_a_signal_take_no_step(model_folder: Callable[..., str]) -> None:
    groups = fakes.with_scores(fakes.make_groups(0), [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [2.0] * 4])
    learner = fakes.make_learner(model_folder(), fakes.run_config(), {"name": "grpo", "minibatches": 12, "epochs": 2})
    metrics = learner.update(groups)
    assert metrics["learner/optimizer_steps"] == 8
    assert metrics["learner/rollouts"] == 12
    assert metrics["learner/zero_advantage"] == 8
    assert metrics["learner/skipped"] == 0


def test_counts_of_several_optimizer_steps_are_added_up(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(1)
    once, often = (
        fakes.make_learner(model_folder(), fakes.run_config(), {"name": "ppo", "epochs": epochs, "minibatches": 2}).update(groups)
        for epochs in (1, 3)
    )
    for name in ("learner/trained_tokens", "learner/tokens"):
        assert often[name] == 3 * once[name]
    for name in ("learner/rollouts", "learner/counted_tokens"):
        assert often[name] == once[name]
    assert often["sampling/importance_sampling_ratio/max"] >= once["sampling/importance_sampling_ratio/max"]
    assert often.keys() == once.keys()


@pytest.mark.parametrize("poisoned", [0, 1, 3])
def test_a_later_minibatch_that_is_not_finite_stops_where_it_is(poisoned: int, model_folder: Callable[..., str]) -> None:
    row, calls = objectives.get("ppo"), []

    def loss(batch: TokenBatch, config: Any) -> Losses:
        calls.append(None)
        found = row.loss(batch, config)
        return dataclasses.replace(found, loss=found.loss * (float("inf") if len(calls) == poisoned + 1 else 1.0))

    options = objectives.validate({"name": "ppo", "epochs": 2, "minibatches": 2})
    learner = Learner(fakes.run_config(), dataclasses.replace(row, loss=loss), options, model_folder())
    marks_: list[str] = [learner.fingerprint()]
    learner.models.optimizers[0].register_step_post_hook(lambda *_: marks_.append(learner.fingerprint()))
    with pytest.raises(LearnerDiverged, match="as they were before this optimizer step"):
        learner.update(fakes.make_groups(0))
    assert len(set(marks_)) == poisoned + 1
    assert learner.fingerprint() == marks_[-1]
    assert learner.step == 0
    assert all(parameter.grad is None for parameter in learner.models.trained)


def test_staleness_counts_from_the_weights_that_drew_each_token(model_folder: Callable[..., str]) -> None:
    draw = np.random.default_rng(0)
    turns = [fakes.turn(fakes.span(draw, 3, 2, version=1)), fakes.turn(fakes.span(draw, 2, 3, version=4), parent=0)]
    rollouts = [fakes.rollout(turns, member=member, score=float(member)) for member in range(2)]
    group = dataclasses.replace(fakes.make_groups(0)[0], rollouts=tuple(rollouts))
    found: list[list[float]] = []

    class Stale(Seen):
        def loss(self, batch: TokenBatch, config: Any) -> Losses:
            assert batch.staleness is not None
            found.append(batch.staleness[batch.rollout == 0].tolist())
            return super().loss(batch, config)

    learner = Stale("grpo").learner(model_folder(kind="starcoder2"), {"name": "grpo", "epochs": 2})
    learner.step = 5
    learner.update([group])
    assert found == [[4.0, 4.0, 1.0, 1.0, 1.0]] * 2, "the optimizer steps within a step make nothing older"
