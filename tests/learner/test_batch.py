from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import learner_fakes as fakes
import numpy as np
import pytest

from agentrl import objectives
from agentrl.errors import ConfigError
from agentrl.learner.batch import Part, Weighted, parts_of
from agentrl.learner.samples import candidates
from agentrl.learner.signals import REFERENCE, signals_of
from agentrl.records import Group, SamplingContract, Task, Version

if TYPE_CHECKING:
    from agentrl.objectives import GroupSignals

DRAW = np.random.default_rng(5)


def group(*scores: float | None, lengths: tuple[int, ...] | None = None, endings: tuple[str, ...] | None = None) -> Group:
    rollouts = []
    for member, score in enumerate(scores):
        tokens = fakes.span(DRAW, 3, lengths[member] if lengths else 4)
        ending = endings[member] if endings else "complete"
        rollouts.append(fakes.rollout([fakes.turn(tokens)], member=member, score=score, ending=ending))
    return Group(index=0, task=Task(id="t", environment="e", row={}), rollouts=tuple(rollouts), dispatched=Version())


@dataclasses.dataclass
class Step:
    """A step that is one optimizer step, as the learner sees it."""

    active: list[Weighted]
    part: Part
    counts: dict[str, float]

    @property
    def num_rollouts(self) -> int:
        return self.part.num_rollouts

    @property
    def num_tokens(self) -> int:
        return self.part.num_tokens


def step_of(
    groups: list[Group], objective: dict[str, object] | None = None, registered: objectives.Objective | None = None, **options: object
) -> Step:
    chosen = objective or {"name": "grpo"}
    config = fakes.run_config(**options)
    row = registered or objectives.get(str(chosen["name"]))
    own = objectives.validate(chosen)
    found = candidates(groups, config, row.needs(own))
    signals = signals_of(found, [{} for _ in found.samples], row, own, row.needs(own), seed=(0, 0))
    (part,) = parts_of(
        found.samples,
        signals,
        row.needs(own),
        normalization=row.normalization(own),
        max_tokens=config.sampling.max_tokens,
        skips_zero=row.zero_advantage_is_zero_loss(own),
        seed=(0, 0),
    )
    return Step(active=[one for unit in part.active for one in unit], part=part, counts=found.counts | signals.counts)


def advantages(step: Step) -> list[float]:
    return [float(item.credit.advantages[0]) for item in step.active]


def total_weight(step: Step) -> float:
    return sum(item.token_weight * item.sample.num_trained for item in step.active)


def test_sequence_mean_weighs_rollouts_alike_and_token_mean_tokens() -> None:
    groups = [group(0.0, 1.0, lengths=(2, 6)), group(1.0, 3.0, lengths=(1, 7))]
    step = step_of(groups)
    assert [item.token_weight for item in step.active] == pytest.approx([1 / 8, 1 / 24, 1 / 4, 1 / 28])
    assert [item.rollout_weight for item in step.active] == [0.25] * 4
    step = step_of(groups, {"name": "grpo", "normalization": "token_mean"})
    assert [item.token_weight for item in step.active] == [1 / 16] * 4
    step = step_of(groups, {"name": "grpo", "normalization": "constant"}, sampling={"max_tokens": 10})
    assert [item.token_weight for item in step.active] == pytest.approx([1 / 40] * 4)


def test_an_unscorable_member_is_outside_baseline_loss_and_denominator() -> None:
    step = step_of([group(0.0, None, 1.0)])
    alone = step_of([group(0.0, 1.0)])
    assert advantages(step) == advantages(alone)
    assert step.num_rollouts == 2
    assert step.num_tokens == 8
    assert step.counts["mask/unscorable"] == 1
    assert total_weight(step) == pytest.approx(1)


def test_a_group_too_small_for_a_signal_is_left_out_and_counted() -> None:
    step = step_of([group(None, 2.0), group(0.0, 1.0)])
    assert step.num_rollouts == 2
    assert step.counts["mask/small_group"] == 1
    assert {item.sample.group for item in step.active} == {0}


def test_zero_advantages_are_not_computed_but_stay_in_the_denominators() -> None:
    step = step_of([group(1.0, 1.0), group(0.0, 1.0)])
    assert len(step.active) == 2
    assert step.num_rollouts == 4
    assert step.counts["learner/zero_advantage"] == 2
    assert total_weight(step) == pytest.approx(0.5)
    computed = dataclasses.replace(objectives.get("grpo"), zero_advantage_is_zero_loss=lambda config: False)
    assert len(step_of([group(1.0, 1.0), group(0.0, 1.0)], registered=computed).active) == 4


def test_truncated_rollouts_can_be_masked_and_stay_in_the_baseline() -> None:
    groups = [group(0.0, 1.0, 5.0, endings=("complete", "complete", "truncated"))]
    plain, masked = step_of(groups), step_of(groups, learner={"mask_truncated": True})
    assert advantages(masked) == advantages(plain)[:2]
    assert masked.counts["mask/truncated"] == 1
    assert masked.num_rollouts == 2
    assert total_weight(masked) == pytest.approx(1)


def test_a_sampled_token_shared_by_forks_is_trained_once() -> None:
    turns = [fakes.turn(fakes.span(DRAW, 3, 4)), fakes.turn(fakes.span(DRAW, 2, 3), parent=0), fakes.turn(fakes.span(DRAW, 1, 5), parent=0)]
    forked = fakes.rollout(turns, member=0, score=1.0)
    straight = fakes.rollout(turns[:1], member=1, score=0.0)
    both = Group(index=0, task=forked.task, rollouts=(forked, straight), dispatched=Version())
    sample = step_of([both]).active[0].sample
    assert sample.num_trained == 4 + 3 + 5
    assert [len(row) for row in sample.rows] == [7 + 5 - 1, 7 + 6 - 1]  # the last token of a row predicts nothing
    assert [len(places) for places in sample.sources] == [7, 5]
    assert sample.targets[:4].tolist() == turns[0].span.ids[3:].tolist()


def test_a_rollout_that_sampled_nothing_counts_in_the_baseline_only() -> None:
    silent = fakes.rollout([], member=1, score=4.0)
    spoke = group(0.0).rollouts[0]
    both = Group(index=0, task=spoke.task, rollouts=(spoke, silent), dispatched=Version())
    step = step_of([both])
    assert step.num_rollouts == 1
    assert advantages(step)[0] < 0


def test_the_kl_of_a_rollout_reaches_the_signal() -> None:
    seen: list[GroupSignals] = []

    def spy(groups: list[GroupSignals], config: object) -> list[np.ndarray]:
        seen.extend(groups)
        return [np.zeros(len(one.rewards)) for one in groups]

    objective = dataclasses.replace(objectives.get("grpo"), advantages=spy)  # type: ignore[arg-type]
    config = fakes.run_config()
    silent = fakes.rollout([], member=2, score=0.0)
    base = group(0.0, 1.0)
    own = objectives.validate({"name": "grpo"})
    found = candidates([dataclasses.replace(base, rollouts=(*base.rollouts, silent))], config, objective.needs(own))
    scores = [{REFERENCE: sample.sampler_logprobs - 0.5} for sample in found.samples]
    signals_of(found, scores, objective, own, objective.needs(own), seed=(0, 0))
    assert seen[0].reference_kl == pytest.approx([2.0, 2.0, 0.0])


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_samples_of_another_distribution_are_refused(options: dict[str, float]) -> None:
    base = group(0.0, 1.0)
    turns = [dataclasses.replace(one, contract=SamplingContract(**options)) for one in base.rollouts[1].turns]  # type: ignore[arg-type]
    mixed = dataclasses.replace(base, rollouts=(base.rollouts[0], dataclasses.replace(base.rollouts[1], turns=tuple(turns))))
    with pytest.raises(ConfigError, match="but the learner scores the whole distribution"):
        step_of([mixed])


def test_a_row_without_a_prompt_is_refused() -> None:
    bare = [fakes.rollout([fakes.turn(fakes.span(DRAW, 0, 3))], member=member, score=float(member)) for member in range(2)]
    with pytest.raises(ValueError, match="samples its first token"):
        step_of([Group(index=0, task=bare[0].task, rollouts=tuple(bare), dispatched=Version())])
