from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest

from agentrl import objectives
from agentrl.errors import ConfigError
from agentrl.learner.samples import candidates
from agentrl.learner.signals import signals_of
from agentrl.records import SamplingContract, TokenSpan, Turn, Version, VersionRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.records import Group, Rollout


def needs_of(**objective: Any) -> objectives.Needs:
    return objectives.get(objective["name"]).needs(objectives.validate(objective))


def sampled_with(group: Group, shares: list[float]) -> Group:
    """The group, each member sampled with a share of the reference."""
    rollouts = []
    for rollout, share in zip(group.rollouts, shares, strict=True):
        contract = SamplingContract(reference_share=share)
        rollouts.append(dataclasses.replace(rollout, turns=tuple(dataclasses.replace(one, contract=contract) for one in rollout.turns)))
    return dataclasses.replace(group, rollouts=tuple(rollouts))


@pytest.mark.parametrize(
    ("objective", "right", "wrong"),
    [
        ({"name": "xpo"}, [0, 0, 1, 1], [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0.5, 1]]),
        ({"name": "nash_md", "mixture": 0.25}, [0, 0, 0.25, 0.25], [[0, 0, 0, 0], [0.25, 0, 0.25, 0.25], [0, 0, 1, 1]]),
        ({"name": "a2po"}, [0, 0, 1, 1], [[0, 0, 0, 1], [0, 1, 1, 1]]),
        ({"name": "online_dpo"}, [0, 0, 0, 0], [[0, 0, 1, 1], [0, 0, 0, 0.25]]),
        ({"name": "grpo"}, [0, 0, 0, 0], [[0, 0, 0, 1]]),
    ],
    ids=str,
)
def test_each_half_is_sampled_as_the_objective_has_it(objective: dict[str, Any], right: list[float], wrong: list[list[float]]) -> None:
    needs, config, group = needs_of(**objective), fakes.run_config(), fakes.make_groups(0)[0]
    found = candidates([sampled_with(group, right)], config, needs)
    assert [member.rival for member in found.members[0]] == [share > 0 for share in right]
    for shares in wrong:
        with pytest.raises(ConfigError, match=r"member \d, was sampled at .*reference_share=.* sample as the run file says"):
            candidates([sampled_with(group, shares)], config, needs)


def test_a_failed_member_makes_nobody_a_rival() -> None:
    """Which half a rollout is in follows from its own place in the group as it was played."""
    group = sampled_with(
        fakes.with_scores(fakes.make_groups(0, members=6), [[None, 1.0, 1.0, None, 1.0, 1.0]] + [[0.0] * 6] * 2)[0], [0] * 3 + [1] * 3
    )
    found = candidates([group], fakes.run_config(), needs_of(name="xpo"))
    assert [(member.member, member.rival) for member in found.members[0]] == [(1, False), (2, False), (4, True), (5, True)]
    assert found.sizes == (6,)


def with_logprob(rollout: Rollout, value: float) -> Rollout:
    """The rollout, the last of its sampled tokens with this log-prob."""
    span = rollout.turns[-1].span
    logprobs = span.logprobs.copy()
    logprobs[-1] = value
    turns = (*rollout.turns[:-1], dataclasses.replace(rollout.turns[-1], span=dataclasses.replace(span, logprobs=logprobs)))
    return dataclasses.replace(rollout, turns=turns)


@pytest.mark.parametrize("value", [-np.inf, np.inf])
@pytest.mark.parametrize("objective", [{"name": "grpo"}, {"name": "ppo", "epochs": 1}, {"name": "rloo"}, {"name": "online_dpo"}], ids=str)
def test_a_rollout_with_an_infinite_log_prob_is_as_good_as_failed(
    value: float, objective: dict[str, Any], model_folder: Callable[..., str]
) -> None:
    groups = fakes.make_groups(4)
    broken = [dataclasses.replace(one, rollouts=(with_logprob(one.rollouts[0], value), *one.rollouts[1:])) for one in groups]
    failed = [
        dataclasses.replace(one, rollouts=(fakes.rollout(list(one.rollouts[0].turns), member=0, score=None), *one.rollouts[1:]))
        for one in groups
    ]
    learner = fakes.make_learner(model_folder(), fakes.run_config(), objective)
    expected, others = fakes.gradient_at_rest(learner, failed)
    found, metrics = fakes.gradient_at_rest(learner, broken)
    assert fakes.distance(found, expected) == 0.0
    assert (metrics["mask/not_finite"], metrics["mask/unscorable"]) == (3, 0)
    assert (others["mask/not_finite"], others["mask/unscorable"]) == (0, 3)
    assert all(np.isfinite(number) for number in metrics.values())


def test_a_group_of_infinities_is_too_small(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(4, groups=1, members=3)
    rollouts = groups[0].rollouts
    broken = dataclasses.replace(groups[0], rollouts=(*[with_logprob(one, -np.inf) for one in rollouts[:2]], rollouts[2]))
    metrics = fakes.make_learner(model_folder(), fakes.run_config()).update([broken])
    assert (metrics["mask/not_finite"], metrics["mask/small_group"], metrics["learner/skipped"]) == (2, 1, 1)


def _turn(*, parent: int = -1, trained: bool = True, reward: float = 0.0) -> Turn:
    span = TokenSpan(ids=[3, 4], source=[0, 1], logprobs=[np.nan, -1.0], versions=(VersionRun(version=Version(), start=1, end=2),))
    return Turn(parent=parent, span=span, contract=SamplingContract(), finish_reason="stop", trained=trained, reward=reward)


def test_credit_goes_by_the_turns_that_are_trained_in_the_order_of_time() -> None:
    turns = [_turn(), _turn(trained=False, reward=8.0), _turn(), _turn(parent=0, reward=1.0), _turn(parent=1, trained=False)]
    group = fakes.make_groups(4, groups=1, members=2)[0]
    mixed = dataclasses.replace(group, rollouts=(fakes.rollout(turns, member=0, score=13.0), group.rollouts[1]))
    needs = needs_of(name="grpo", turn_discount=0.5)
    found = candidates([mixed], fakes.run_config(), needs)
    assert found.samples[0].turn.tolist() == [1, 0, 2]  # the row of turn 2 comes before that of turns 0 and 3
    assert found.members[0][0].turn_rewards.tolist() == [8.0, 0.0, 1.0]
    options = objectives.validate({"name": "grpo", "turn_discount": 0.5, "baseline": "none", "scale_rewards": "none"})
    signals = signals_of(found, [{}, {}], objectives.get("grpo"), options, needs, seed=(0,))
    # the end gave 13 - 9 = 4, with the last turn: 5; before it 0 + 5 / 2, and 8 + 5 / 4 before that
    assert signals.credited[0].advantages.tolist() == [2.5, 9.25, 5.0]


def test_a_group_with_nothing_to_train_is_skipped(model_folder: Callable[..., str]) -> None:
    group = fakes.make_groups(4, groups=1, members=2)[0]
    theirs = dataclasses.replace(
        group, rollouts=tuple(fakes.rollout([_turn(trained=False)], member=member, score=float(member)) for member in range(2))
    )
    metrics = fakes.make_learner(model_folder(), fakes.run_config()).update([theirs])
    assert metrics["learner/skipped"] == 1
    assert all(np.isfinite(number) for number in metrics.values())
    own = fakes.rollout(list(group.rollouts[1].turns), member=1, score=1.0)
    mixed = dataclasses.replace(group, rollouts=(theirs.rollouts[0], own))
    metrics = fakes.make_learner(model_folder(), fakes.run_config()).update([mixed])
    assert metrics["learner/skipped"] == 0
