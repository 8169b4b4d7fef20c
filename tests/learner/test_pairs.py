from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from plain_rows import plain_gradients

from agentrl import objectives
from agentrl.learner import Learner
from agentrl.learner.packing import Prefixes, dealt, packed_sizes
from agentrl.learner.samples import candidates

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.objectives import Losses, TokenBatch
    from agentrl.records import Group

DPO = {"name": "online_dpo"}
SCORES = [[2.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 3.0], [0.0, 5.0, 4.0, 0.0]]
"""By halves: member 0 against 2, 1 against 3; (0, 2), (3, 1); a tie and (3, 1); (2, 0) and (1, 3)."""


def mark(rollout: Any) -> float:
    spans = [turn.span for turn in rollout.turns]
    return round(float(sum(span.logprobs[span.sampled].astype(np.float64).sum() for span in spans)), 4)


class Watched:
    """A learner whose loss keeps the pairs that it was given, by the marks of their rollouts."""

    def __init__(self, folder: str, objective: dict[str, Any], config: Any, **options: Any) -> None:
        row = objectives.get(objective["name"])
        self.pairs: list[tuple[float, float]] = []
        self.batches = 0

        def loss(batch: TokenBatch, own: Any) -> Losses:
            sums = batch.sum_by_rollout(batch.sampler_logprobs.double()).tolist()
            assert batch.chosen is not None
            assert batch.rejected is not None
            self.pairs += [(round(sums[one], 4), round(sums[other], 4)) for one, other in zip(batch.chosen, batch.rejected, strict=True)]
            assert 2 * len(batch.chosen) == batch.num_rollouts
            self.batches += 1
            return row.loss(batch, own)

        self.learner = Learner(config, dataclasses.replace(row, loss=loss), objectives.validate(objective), folder, **options)


def expected_pairs(groups: list[Group]) -> list[tuple[float, float]]:
    """By halves and by the higher score, member by member."""
    found = []
    for group in groups:
        half = len(group.rollouts) // 2
        for one, other in zip(group.rollouts[:half], group.rollouts[half : 2 * half], strict=True):
            values = one.score.value, other.score.value
            if None not in values and values[0] != values[1]:
                better, worse = (one, other) if values[0] > values[1] else (other, one)
                found.append((mark(better), mark(worse)))
    return sorted(found)


@settings(
    max_examples=15,
    phases=[Phase.generate],  # shrinking is slow
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 1000),
    budget=st.integers(1, 200),
    scores=st.lists(st.lists(st.sampled_from([None, 0.0, 1.0, 2.0]), min_size=5, max_size=5), min_size=1, max_size=4),
)
def test_pairs_are_whole_and_right_however_a_step_is_cut(
    model_folder: Callable[..., str], seed: int, budget: int, scores: list[list[float | None]]
) -> None:
    groups = fakes.with_scores(fakes.make_groups(seed, groups=len(scores), members=5), scores)
    watched = Watched(model_folder(), DPO, fakes.run_config(learner={"tokens_per_micro_batch": budget}))
    mark_before = watched.learner.fingerprint()
    metrics = watched.learner.update(groups)
    expected = expected_pairs(groups)
    assert sorted(watched.pairs) == expected
    assert metrics["learner/pairs"] == len(expected)
    assert metrics["learner/rollouts"] == 2 * len(expected)
    scorable = sum(value is not None for group in scores for value in group if sum(one is not None for one in group) > 1)
    assert metrics["learner/unpaired"] == scorable - 2 * len(expected)
    assert metrics["learner/skipped"] == (not expected)
    assert (watched.learner.fingerprint() == mark_before) == (not expected)


@settings(max_examples=60)
@given(seed=st.integers(0, 1000), budget=st.integers(1, 150), ranks=st.integers(1, 4), lanes=st.booleans())
def test_a_pair_is_never_dealt_to_two_micro_batches(seed: int, budget: int, ranks: int, lanes: bool) -> None:
    config = fakes.run_config()
    samples = candidates(fakes.make_groups(seed, members=6), config, objectives.get("online_dpo").needs(objectives.validate(DPO))).samples
    units = [(samples[place], samples[place + 3]) for first in range(0, len(samples), 6) for place in range(first, first + 3)]

    class Model:
        intermediate_size = 64

        def get_text_config(self) -> Model:
            return self

    if lanes:
        ranks = 1
    shares = [dealt(units, budget, Model(), torch.device("cpu"), rank=rank, ranks=ranks, lanes=lanes) for rank in range(ranks)]
    assert sorted(place for share in shares for batch in share for place in batch) == list(range(len(units)))
    assert len({len(share) for share in shares}) == 1
    for batch in (batch for share in shares for batch in share):
        assert batch == sorted(batch)
        members = [sample for place in batch for sample in units[place]]
        assert len(batch) < 2 or sum(packed_sizes(members, Prefixes(members), range(len(members)))) <= budget, "both members count"


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("objective", [DPO, DPO | {"loss": "ipo", "beta": 0.3}], ids=str)
def test_the_gradient_of_pairs_is_that_of_plain_rows(objective: dict[str, Any], budget: int, model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    watched = Watched(folder, objective, fakes.run_config(learner={"tokens_per_micro_batch": budget}), master_dtype=torch.float64)
    learner = fakes.shaken(watched.learner)
    groups = fakes.with_scores(fakes.make_groups(3), SCORES)
    (found,) = fakes.every_gradient(learner, groups)
    assert watched.batches == {1: 5, 10_000: 1}.get(budget, watched.batches)
    assert fakes.distance(found, plain_gradients(folder, learner, groups, objective)) < 1e-12


def test_pairs_with_an_unscorable_cut_or_silent_member_are_none(model_folder: Callable[..., str]) -> None:
    base = fakes.with_scores(fakes.make_groups(2, groups=1, members=8), [[0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0]])[0]
    rollouts = list(base.rollouts)
    rollouts[0] = fakes.rollout([], member=0, score=0.0)  # sampled nothing; its twin is 4
    rollouts[1] = dataclasses.replace(rollouts[1], ending="truncated")  # masked; its twin is 5
    rollouts[6] = fakes.rollout(list(rollouts[6].turns), member=6, score=None)  # its twin is 2
    watched = Watched(model_folder(), DPO, fakes.run_config(learner={"mask_truncated": True}))
    metrics = watched.learner.update([dataclasses.replace(base, rollouts=tuple(rollouts))])
    assert watched.pairs == [(mark(rollouts[7]), mark(rollouts[3]))]
    assert metrics["learner/pairs"] == 1
    assert metrics["learner/rollouts"] == 2
    assert metrics["learner/counted_tokens"] == rollouts[3].num_sampled + rollouts[7].num_sampled


def test_extremes_are_the_best_and_the_worst(model_folder: Callable[..., str]) -> None:
    groups = fakes.with_scores(fakes.make_groups(0), [[1.0, 3.0, None, 0.0], [2.0, 2.0, 2.0, 2.0], [None, 1.0, 5.0, 4.0]])
    watched = Watched(model_folder(), DPO | {"pairing": "extremes"}, fakes.run_config())
    assert watched.learner.update(groups)["learner/pairs"] == 2
    best = [(groups[0].rollouts[1], groups[0].rollouts[3]), (groups[2].rollouts[2], groups[2].rollouts[1])]
    assert sorted(watched.pairs) == sorted((mark(one), mark(other)) for one, other in best)


def test_a_judge_decides_by_places_as_they_were_played(model_folder: Callable[..., str]) -> None:
    """Scores say nothing here, and a failed member moves nobody's place."""
    groups = fakes.with_scores(fakes.make_groups(0, groups=2, members=6), [[None, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 6])
    said: list[tuple[float | None, ...]] = [(0.9, 0.8, 0.1), (None, 0.5, 0.0)]
    judged = [dataclasses.replace(group, preferences=chances) for group, chances in zip(groups, said, strict=True)]
    watched = Watched(model_folder(), DPO | {"preferences": "judge"}, fakes.run_config())
    metrics = watched.learner.update(judged)
    first, second = ([mark(one) for one in group.rollouts] for group in groups)
    assert sorted(watched.pairs) == sorted([(first[1], first[4]), (first[5], first[2]), (second[5], second[2])])
    assert metrics["learner/pairs"] == 3


def test_a_step_without_pairs_counts_and_changes_nothing(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.1}), DPO)
    learner.update(fakes.with_scores(fakes.make_groups(0), SCORES))
    mark_before = learner.fingerprint()
    ties = fakes.with_scores(fakes.make_groups(1), [[1.0] * 4, [0.0, 1.0, 0.0, 1.0], [None, 1.0, 2.0, 1.0]])
    metrics = learner.update(ties)
    assert (metrics["learner/skipped"], metrics["learner/pairs"], metrics["learner/optimizer_steps"]) == (1, 0, 0)
    assert metrics["learner/unpaired"] == 11
    assert (learner.step, learner.fingerprint()) == (2, mark_before)


def test_a_pair_loses_where_it_should(model_folder: Callable[..., str]) -> None:
    """Training on a pair raises the chosen rollout's log-prob against the rejected one's."""
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.003}), DPO | {"beta": 1.0})
    groups = fakes.with_scores(fakes.make_groups(0), SCORES)
    found = [learner.update(groups) for _ in range(5)]
    assert found[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert found[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert [one["rewards/margins"] for one in found] == sorted(one["rewards/margins"] for one in found)
    assert found[-1]["rewards/margins"] > 0.1
    assert found[-1]["rewards/accuracies"] == 1.0
