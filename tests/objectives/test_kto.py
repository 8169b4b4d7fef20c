"""Mismatched completions of KTO, labels as credit, and what is told of each kind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import toys

from agentrl.config import RunConfig
from agentrl.examples import Example, Text
from agentrl.objectives import get, validate
from agentrl.objectives.kto import judged, prepared
from agentrl.objectives.unpaired import labels_as_credit, with_mismatched
from agentrl.offline_needs import mistakes_of_offline


def row(prompt, completion, *, label=1.0, known=False):
    ids = np.array([*prompt, *completion], dtype=np.int32)
    text = Text(ids=ids, trained=np.arange(len(ids)) >= len(prompt), prompt_length=len(prompt))
    return Example(
        where=f"{prompt}", texts=(text,), rewards=(label,), reference_logprobs=(np.zeros(len(completion), np.float32),) if known else None
    )


def borrowed(example):
    text = example.texts[1]
    return tuple(text.ids[text.prompt_length :].tolist())


ROWS = [row([1, number], [10 + number] * (1 + number % 4), label=float(number % 2)) for number in range(9)]


def test_every_prompt_has_another_s_completion_and_each_lends_once():
    found = with_mismatched(ROWS)
    for example, old in zip(found, ROWS, strict=True):
        assert example.texts[0] is old.texts[0]
        text = example.texts[1]
        assert text.ids[: text.prompt_length].tolist() == old.texts[0].ids[:2].tolist()
        assert borrowed(example) != tuple(old.texts[0].ids[2:].tolist())
        assert text.trained.tolist() == [False, False, *[True] * (len(text.ids) - 2)]
        assert example.rewards == (old.rewards[0], 0.0)
    assert len({borrowed(example) for example in found}) == len(ROWS)


def test_who_lends_to_whom_does_not_depend_on_the_order():
    by_row = {example.where: borrowed(example) for example in with_mismatched(ROWS)}
    for seed in range(5):
        turned = random.Random(seed).sample(ROWS, len(ROWS))
        assert {example.where: borrowed(example) for example in with_mismatched(turned)} == by_row


def test_a_completion_of_the_same_prompt_is_none_to_borrow():
    twins = [row([1, 2], [number]) for number in (11, 12, 13)] + [row([1, 3], [14])]
    found = with_mismatched(twins)
    assert [borrowed(example) for example in found[:3]] == [(14,)] * 3
    assert borrowed(found[3]) in {(11,), (12,), (13,)}
    alike = with_mismatched(twins[:3])  # better than none
    assert all(borrowed(example) != tuple(old.texts[0].ids[2:].tolist()) for example, old in zip(alike, twins, strict=False))


def test_a_borrowed_completion_makes_no_text_longer_than_the_step_s_longest():
    long_prompt, long_completion = row(range(3, 23), [30]), row([1], range(31, 51))
    found = with_mismatched([long_prompt, long_completion])
    assert max(len(text.ids) for example in found for text in example.texts) == 21
    assert found[0].texts[1].num_trained == 1


def test_a_row_alone_borrows_nothing_and_known_log_probs_are_not_those_of_the_new_text():
    assert with_mismatched(ROWS[:1]) == ROWS[:1]
    assert with_mismatched([]) == []
    assert with_mismatched([row([1], [2], known=True), row([2], [3], known=True)])[0].reference_logprobs is None
    assert prepared(ROWS, validate({"name": "kto", "loss": "apo_zero_unpaired"})) is ROWS


def judged_group(label, drift, *, own=(-1.0,)):
    first = toys.member((0,) * len(own), start_logprobs=own, reference_logprobs=own)
    second = toys.member((0,), index=1, start_logprobs=[-1.0 + drift], reference_logprobs=[-1.0])
    return toys.group([label, 0.0], [first, second])


@pytest.mark.parametrize(("drifts", "baseline"), [([1.0, 3.0], 2.0), ([-1.0, -3.0], 0.0), ([4.0, -2.0], 1.0)])
def test_the_baseline_is_the_mean_drift_and_never_below_0(drifts, baseline):
    found = judged([judged_group(1.0, drifts[0]), judged_group(0.0, drifts[1])], validate({"name": "kto"}))
    assert [credit.parts["drift"].tolist() for credit in found] == [[pytest.approx(baseline)] * 2] * 2
    assert [credit.advantages.tolist() for credit in found] == [[1.0, 0.0], [-1.0, 0.0]]
    assert [credit.trained.tolist() for credit in found] == [[True, False]] * 2


def test_balance_makes_the_difference_of_means_of_a_mean():
    labels = [1.0, 1.0, 0.0, 1.0, 0.0]
    values = np.array([2.0, 4.0, 1.0, 6.0, -3.0])
    credits_ = labels_as_credit([toys.group([label]) for label in labels])
    balance = np.array([credit.parts["balance"][0] for credit in credits_])
    assert (values * balance).mean() == pytest.approx(values[[0, 1, 3]].mean() - values[[2, 4]].mean())
    one_kind = labels_as_credit([toys.group([1.0]), toys.group([1.0])])
    assert all(np.isnan(credit.parts["balance"]).all() for credit in one_kind)


def test_bco_starts_from_its_delta_and_a_step_without_rewards_leaves_it():
    bco, config = get("bco"), validate({"name": "bco", "delta": 0.5})
    state = bco.state(config)
    assert bco.in_force(config, state).delta == 0.5
    assert bco.next_state(config, state, {"loss": 0.0}) == state
    first = bco.next_state(config, state, {"rewards/mean": 2.0, "learner/rollouts": 4.0})
    assert first == {"delta": 2.0, "delta_texts": 4.0}
    assert bco.next_state(config, first, {"rewards/mean": -1.0, "learner/rollouts": 2.0}) == {"delta": 1.0, "delta_texts": 6.0}


def test_a_step_of_one_row_has_nothing_to_borrow_from_and_is_refused():
    config = RunConfig(model="m", dataset="rows.jsonl", objective={"name": "kto"}, batch_size=1)
    for loss, refused in (("kto", True), ("apo_zero_unpaired", False)):
        needs = get("kto").needs(validate({"name": "kto", "loss": loss}))
        said = [text for key, text in mistakes_of_offline(config, needs, "kto") if key == ("batch_size",)]
        assert [text.endswith("a step has one row: set 2 or more") for text in said] == [True] * refused


def test_density_ratios_need_all_rows_first():
    config = RunConfig(model="m", dataset="rows.jsonl", steps=2, data={"streaming": True})
    needs = get("bco").needs(validate({"name": "bco", "density_ratio": True}))
    assert any("objective.density_ratio" in text for _, text in mistakes_of_offline(config, needs, "bco"))
