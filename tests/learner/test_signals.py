from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import objectives
from agentrl.errors import LearnerDiverged
from agentrl.learner.samples import candidates
from agentrl.learner.signals import REFERENCE, VALUES, Signals, columns_of, signals_of
from agentrl.records import Group, Score, Task, Version
from agentrl.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.records import Rollout


def group_of(*rollouts: Rollout) -> Group:
    return Group(index=0, task=Task(id="t", environment="e", row={}), rollouts=rollouts, dispatched=Version())


def signals(groups: list[Group], objective: dict[str, Any], scores: Any = None, **options: Any) -> Signals:
    row, own = objectives.get(objective["name"]), objectives.validate(objective)
    found = candidates(groups, fakes.run_config(**options), row.needs(own))
    columns = [{name: values(sample) for name, values in (scores or {}).items()} for sample in found.samples]
    return signals_of(found, columns, row, own, row.needs(own), seed=(0, 0))


def forked(rewards: list[float], end: float, *, member: int, seed: int = 0) -> Rollout:
    """Turns 0 to 4: 1 and 3 go on from 0, 2 from 1, 4 from 3; rows are 0-1-2 and 3-4."""
    draw = np.random.default_rng(seed)
    parents = [-1, 0, 1, 0, 3]
    turns = [fakes.turn(fakes.span(draw, 3, 1 + number), parent) for number, parent in enumerate(parents)]
    turns = [dataclasses.replace(one, reward=reward) for one, reward in zip(turns, rewards, strict=True)]
    whole = fakes.rollout(turns, member=member, score=sum(rewards) + end)
    assert [sorted(set(row.turn[row.trained].tolist())) for row in rows_of(whole)] == [[0, 1, 2], [3, 4]]
    return whole


REWARDS = st.lists(st.sampled_from([0.0, 1.0, -2.0, 0.5]), min_size=5, max_size=5)


@settings(max_examples=40)
@given(rewards=REWARDS, end=st.sampled_from([0.0, 3.0]), discount=st.sampled_from([0.0, 0.5, 1.0]))
def test_each_turn_is_credited_with_what_came_from_it_on(rewards: list[float], end: float, discount: float) -> None:
    objective = {"name": "grpo", "baseline": "none", "scale_rewards": "none", "turn_discount": discount}
    (one,) = signals([group_of(forked(rewards, end, member=0))], objective).credited
    given_ = [*rewards[:-1], rewards[-1] + end]
    returns = [sum(discount ** (later - turn) * given_[later] for later in range(turn, 5)) for turn in range(5)]
    expected = np.repeat(returns, [1, 2, 3, 4, 5])
    np.testing.assert_allclose(one.advantages, expected, atol=1e-12)


def test_turns_are_compared_with_the_whole_rollouts_of_the_group() -> None:
    first, second = forked([1.0, 0.0, 0.0, 0.0, 0.0], 2.0, member=0), forked([0.0] * 5, 1.0, member=1, seed=1)
    objective = {"name": "grpo", "turn_discount": 1.0, "scale_rewards": "none"}
    found = signals([group_of(first, second)], objective).credited
    np.testing.assert_allclose(found[0].advantages, np.repeat([1.0, 0.0, 0.0, 0.0, 0.0], [1, 2, 3, 4, 5]), atol=1e-12)
    np.testing.assert_allclose(found[1].advantages, np.full(15, -1.0), atol=1e-12)


@settings(max_examples=40)
@given(rewards=REWARDS, end=st.sampled_from([0.0, 3.0]), decay=st.sampled_from([0.0, 0.6, 1.0]), seed=st.integers(0, 99))
def test_advantages_go_through_a_fork_in_the_order_of_time(rewards: list[float], end: float, decay: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=15)
    objective = {"name": "ppo", "beta": 0.0, "gae_lambda": decay, "discount": 0.9, "whiten": False}
    (one,) = signals([group_of(forked(rewards, end, member=0))], objective, {VALUES: lambda sample: values}).credited
    lasts = np.cumsum([1, 2, 3, 4, 5]) - 1
    gained = np.zeros(15)
    gained[lasts] = rewards
    gained[-1] += end
    advantages, later = np.zeros(15), 0.0
    for place in reversed(range(15)):  # rows happen to lie in the order of time here
        delta = gained[place] + 0.9 * (values[place + 1] if place < 14 else 0.0) - values[place]
        later = advantages[place] = delta + 0.9 * decay * later
    np.testing.assert_allclose(one.advantages, advantages, atol=1e-12)
    np.testing.assert_allclose(one.columns["returns"], advantages + values, atol=1e-12)


def test_rows_out_of_the_order_of_time_are_put_into_it() -> None:
    """The first row ends with turn 3, so turns 1 and 2 come after it in the sample and before it in time."""
    draw = np.random.default_rng(0)
    turns = [fakes.turn(fakes.span(draw, 2, 1), parent) for parent in (-1, 0, 1, 0)]
    turns = [turns[0], turns[1], turns[3], turns[2]]  # parents -1, 0, 0, 1
    rewards = [0.0, 5.0, 0.0, 1.0]
    turns = [dataclasses.replace(one, reward=reward) for one, reward in zip(turns, rewards, strict=True)]
    whole = fakes.rollout(turns, member=0, score=6.0)
    order = [int(turn) for row in rows_of(whole) for turn in row.turn[row.trained]]
    assert order != sorted(order)
    objective = {"name": "ppo", "beta": 0.0, "gae_lambda": 1.0, "whiten": False}
    (one,) = signals([group_of(whole)], objective, {VALUES: lambda sample: np.zeros(4)}).credited
    assert one.advantages.tolist() == [[6.0, 6.0, 1.0, 1.0][turn] for turn in order]


def test_what_a_turn_without_tokens_gave_is_not_lost() -> None:
    draw = np.random.default_rng(0)
    turns = [fakes.turn(fakes.span(draw, 2, 2)), fakes.turn(fakes.span(draw, 2, 0), 0), fakes.turn(fakes.span(draw, 2, 3), 1)]
    turns = [dataclasses.replace(one, reward=reward) for one, reward in zip(turns, (1.0, 10.0, 100.0), strict=True)]
    objective = {"name": "ppo", "beta": 0.0, "gae_lambda": 1.0, "whiten": False}
    (one,) = signals([group_of(fakes.rollout(turns, member=0, score=1111.0))], objective, {VALUES: lambda sample: np.zeros(5)}).credited
    assert one.advantages.tolist() == [1111.0, 1111.0, 1100.0, 1100.0, 1100.0]


KL_IN_REWARD: list[dict[str, Any]] = [
    {"name": "rloo"},
    {"name": "grpo", "beta": 0.1, "kl_in": "reward", "kl_estimator": "k2"},
    {"name": "grpo", "beta": 0.1, "kl_in": "reward", "turn_discount": 0.9},
    {"name": "ppo", "epochs": 1},
]


@pytest.mark.parametrize("objective", KL_IN_REWARD, ids=str)
def test_a_member_that_sampled_nothing_has_no_kl(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.1}), objective)
    learner.update(fakes.make_groups(0))
    silent = fakes.rollout([], member=4, score=5.0)
    groups = [dataclasses.replace(one, rollouts=(*one.rollouts, silent)) for one in fakes.make_groups(1)]
    metrics = learner.update(groups)
    assert metrics["learner/skipped"] == 0
    assert all(np.isfinite(value) for value in metrics.values())
    mark = learner.fingerprint()
    mute = group_of(*[fakes.rollout([], member=member, score=float(member)) for member in range(3)])
    assert learner.update([mute])["learner/skipped"] == 1
    assert learner.fingerprint() == mark


def test_silent_members_stand_in_the_baseline_with_their_reward_alone() -> None:
    draw = np.random.default_rng(0)
    spoke = fakes.rollout([fakes.turn(fakes.span(draw, 3, 4))], member=0, score=1.0)
    silent = fakes.rollout([], member=1, score=4.0)
    objective = {"name": "rloo", "beta": 0.5}
    (one,) = signals([group_of(spoke, silent)], objective, {REFERENCE: lambda sample: sample.sampler_logprobs - 0.25}).credited
    assert one.advantages == pytest.approx([1.0 - 0.5 * 4 * 0.25 - 4.0] * 4)


def test_what_is_scored_follows_from_the_needs() -> None:
    needs = {
        "grpo": {"name": "grpo"},
        "reference": {"name": "rloo"},
        "reference values": {"name": "ppo", "epochs": 1},
        "start entropy values": {"name": "ppo", "beta": 0.0},
    }
    for said, objective in needs.items():
        found = columns_of(objectives.get(objective["name"]).needs(objectives.validate(objective)))
        assert list(found) == ([] if said == "grpo" else said.split())


def truncated(groups: list[Group], *places: int) -> list[Group]:
    return [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(one, ending="truncated" if place in places else "complete") for place, one in enumerate(group.rollouts)
            ),
        )
        for group in groups
    ]


@pytest.mark.parametrize("objective", [{"name": "grpo"}, {"name": "ppo"}, {"name": "m2po"}, {"name": "online_dpo"}], ids=str)
def test_a_step_of_masked_rollouts_trains_nothing(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"mask_truncated": True, "lr": 0.1}), objective)
    mark = learner.fingerprint()
    metrics = learner.update(truncated(fakes.make_groups(0), 0, 1, 2, 3))
    assert (metrics["mask/truncated"], metrics["learner/rollouts"], metrics["learner/skipped"]) == (12, 0, 1)
    assert (learner.step, learner.fingerprint()) == (1, mark)
    assert learner.update(truncated(fakes.make_groups(0), 1))["learner/skipped"] == 0


def test_masked_rollouts_stay_in_the_statistics_of_a_critic_and_of_turns() -> None:
    """What is left out of the loss is the tokens; the advantages of the others are those of the whole step."""
    groups = fakes.with_turn_rewards(fakes.make_groups(3))
    for objective in ({"name": "ppo", "beta": 0.0}, {"name": "grpo", "turn_discount": 0.9}):
        scores = {VALUES: lambda sample: np.cos(np.arange(sample.num_trained))} if objective["name"] == "ppo" else None
        whole = signals(groups, objective, scores).credited
        cut = signals(truncated(groups, 0, 2), objective, scores, learner={"mask_truncated": True}).credited
        kept = [one for one in whole if one.place % 4 in (1, 3)]
        assert len(cut) == len(kept) == 6
        for one, other in zip(cut, kept, strict=True):
            np.testing.assert_array_equal(one.advantages, other.advantages)


def scaled(groups: list[Group], factor: float) -> list[Group]:
    return [
        dataclasses.replace(
            group,
            rollouts=tuple(dataclasses.replace(one, score=Score(value=(one.score.value or 0.0) * factor)) for one in group.rollouts),
        )
        for group in groups
    ]


@pytest.mark.parametrize("factor", [1e30, 1e299])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "ppo", "reinforce", "gspo", "vespo", "online_dpo", "nash_md", "a2po"])
def test_huge_rewards_are_trained_or_refused_and_poison_nothing(name: str, factor: float, model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(), {"name": name})
    groups = scaled(fakes.make_groups(0), factor)
    share = learner.models.needs.rival
    try:
        metrics = learner.update(groups if share is None else fakes.rivals(groups, share))
    except LearnerDiverged:
        assert learner.step == 0
    else:
        assert learner.step == 1
        assert np.isfinite(metrics["loss"])
        assert np.isfinite(metrics["grad_norm"])
    assert all(bool(np.isfinite(one.numpy()).all()) for _, one in learner.named_weights())


@pytest.mark.parametrize(
    ("objective", "trained"),
    [({"name": "grpo"}, 0), ({"name": "online_dpo"}, 0), ({"name": "ppo"}, 3), ({"name": "reinforce"}, 3), ({"name": "rloo"}, 0)],
    ids=str,
)
def test_groups_of_one_are_trained_where_nothing_is_compared(
    objective: dict[str, Any], trained: int, model_folder: Callable[..., str]
) -> None:
    metrics = fakes.make_learner(model_folder(), fakes.run_config(), objective).update(fakes.make_groups(0, members=1))
    assert metrics["learner/rollouts"] == trained
    assert metrics["mask/small_group"] == 3 - trained
