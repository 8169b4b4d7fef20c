"""No option is dead: each of every objective changes something that can be seen, or is refused, or is listed here with its reason."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest
import torch
from pydantic_core import PydanticUndefined
from toys import batch, group, member, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import StepColumns, get, validate
from agentrl.objectives.corrections import CORRECTIONS, correct
from agentrl.objectives.losses import Term
from agentrl.objectives.registry import BUILT_IN

NAMES = [objective.name for objective in BUILT_IN if objective.data is None]
DRAW, TEACHER = np.random.default_rng(8), np.random.default_rng(9)
LENGTHS = (4, 3, 5, 4)
REWARDS = [[1.0, 0.0, 0.5, 0.25], [0.75, 0.5, -0.5, 0.0], [0.5, 1.0, -0.25, -1.0]]
"""Members 0 and 1 of each group are the policy's, 2 and 3 the rival's; no rival of the last group has a reward above 0."""


def column(size, *, low=-3.0, high=-0.2):
    return DRAW.uniform(low, high, size)


def rollout(at, length):
    return member(
        [0] * (length // 2) + [1] * (length - length // 2),
        turn_rewards=[0.25 * at, 0.1],
        index=at,
        rival=at >= 2,
        truncated=at == 0,
        sampler_logprobs=column(length),
        start_logprobs=column(length),
        start_entropy=column(length, low=0, high=2),
        reference_logprobs=column(length),
        teacher_logprobs=TEACHER.uniform(-3.0, -0.2, length),
        values=column(length),
    )


GROUPS = [
    group(
        rewards,
        [rollout(at, length) for at, length in enumerate(LENGTHS)],
        parts={"a": np.array(rewards) / 2, "b": [0.1, 0.2, 0.2, 0.0]},
        preferences={(0, 2): 0.1, (1, 3): 0.9},
    )
    for rewards in REWARDS
]
GIVEN = [4.0, -3.0, -5.0, 2.0]
"""Advantages of the batch's rollouts, of which the third is one that the policy has come to like: its ratios are about 3."""
SHIFTS = [0.6, -0.7, 1.1, -0.2]
NOW = [column(length, low=-4.0) for length in LENGTHS]
SAMPLER = [row - shift + DRAW.normal(0, 0.3, len(row)) for row, shift in zip(NOW, SHIFTS, strict=True)]
COLUMNS = {
    "start_logprobs": [row - 0.3 + DRAW.normal(0, 0.2, len(row)) for row in NOW],
    "reference_logprobs": [row + DRAW.normal(0, 1, len(row)) for row in NOW],
    "entropy": [column(length, low=0.1, high=2) for length in LENGTHS],
    "values": [column(length, low=0, high=1) for length in LENGTHS],
    "start_values": [column(length, low=0, high=1) for length in LENGTHS],
    "returns": [column(length, low=0, high=1) for length in LENGTHS],
    "staleness": [np.full(length, 2.0) for length in LENGTHS],
    "teacher_logprobs": [row + TEACHER.normal(0, 1, len(row)) for row in NOW],
    "divergence": [TEACHER.uniform(0.1, 1, length) for length in LENGTHS],
}
TAUGHT = torch.tensor([one for length, one in zip(LENGTHS, (1.0, 1.0, 0.0, 1.0), strict=True) for _ in range(length)], dtype=torch.float64)
"""The policy as its own teacher had nothing to see for the third rollout."""
FIGURES = {"kl": 0.05, "entropy": 1.0, "learner/rollouts": 4.0, "learner/counted_tokens": 16.0, "learner/reward_mean": 0.4}


def seen(name, options):
    """All that the learner takes from an objective under these options, over three steps of what it adapts."""
    objective, config = get(name), validate({"name": name, **options})
    needs = objective.needs(config)
    found = [needs, objective.normalization(config), objective.zero_advantage_is_zero_loss(config)]
    state = objective.state(config)
    for _ in range(3):
        force = objective.in_force(config, state)
        found += [state, plain(objective.advantages(GROUPS, force)), *loss_of(objective, force, needs)]
        state = objective.next_state(config, state, FIGURES)
    return repr(found)


def loss_of(objective, config, needs):
    marks = {"rival": torch.tensor([False, False, True, True]), "chosen": torch.tensor([0, 3]), "rejected": torch.tensor([2, 1])}
    inputs = batch(NOW, SAMPLER, GIVEN, **COLUMNS, **marks)
    chosen = {}
    if needs.start:
        step = StepColumns(
            advantages=inputs.advantages.numpy(),
            sampler_logprobs=inputs.sampler_logprobs.numpy(),
            start_logprobs=inputs.start_logprobs.numpy(),
            start_entropy=inputs.entropy.numpy(),
            rollout=inputs.rollout.numpy(),
            seed=(0, 1),
        )
        chosen = objective.select(step, config)
    given = {"taught": TAUGHT} | {name: torch.from_numpy(values) for name, values in chosen.items()}
    inputs = dataclasses.replace(inputs, columns=given)
    found = objective.loss(inputs, config)
    terms = [found.terms[name] for name in sorted(found.terms)]
    values = [found.loss, *(term.loss if isinstance(term, Term) else term for term in terms), slopes(found, inputs)]
    return [sorted(found.terms), sorted(chosen), [one.tolist() for one in values]]


def plain(given):
    rows = []
    for one in given:
        if isinstance(one, np.ndarray):
            rows.append(one.tolist())
            continue
        returns = None if one.returns is None else [row.tolist() for row in one.returns]
        trained = None if one.trained is None else one.trained.tolist()
        rows.append(([np.asarray(row).tolist() for row in one.advantages], returns, trained, list(one.pairs)))
    return rows


BASE = {
    "bnpo": {"reward_min": -20.0, "reward_max": 20.0},
    "opd": {"reward_coef": 1.0},
    "minillm": {"reward_coef": 1.0, "own": True},
    "sdpo": {"weight": 0.5},
}
"""Settings in which an objective takes what the others take."""
KL = {"beta": 0.3, "kl_in": "loss", "kl_estimator": "k3"}
ADAPTS = {"entropy_target": 5.0}
KNOBS = {
    "baseline": ({"scale_rewards": "none"}, "none"),
    "scale_rewards": ({"baseline": "group"}, "batch"),
    "reward_weights": ({}, {"a": 1.0, "b": 2.0}),
    "reward_aggregation": ({"baseline": "group", "scale_rewards": "group"}, "normalize_then_sum"),
    "turn_discount": ({}, 0.5),
    "overlong_length": ({}, 64),
    "overlong_cache": ({"overlong_length": 64}, 61),
    "running_baseline": ({"baseline": "running", "scale_rewards": "none"}, 0.7),
    "running_decay": ({"baseline": "running", "scale_rewards": "none"}, 0.5),
    "normalization": ({}, "constant"),
    "beta": ({}, 0.3),
    "kl_in": ({"beta": 0.3, "kl_estimator": "k3"}, "reward"),
    "kl_estimator": ({"beta": 0.3}, "k2"),
    "kl_correction": (KL, False),
    "kl_target": (KL, 1.0),
    "kl_horizon": (KL | {"kl_target": 1.0}, 100.0),
    "entropy_coef": ({}, 0.1),
    "entropy_target": ({}, 5.0),
    "entropy_delta": (ADAPTS, 0.1),
    "entropy_coef_min": (ADAPTS, 0.05),
    "entropy_coef_max": (ADAPTS, 0.001),
    "top_entropy": ({}, 0.5),
    "corrections": ({}, [{"name": "veto", "below": 0.9}]),
    "dynamic_sampling": ({}, True),
    "epochs": ({}, 3),
    "minibatches": ({}, 3),
    "clip_low": ({}, 0.9),
    "clip_high": ({}, 0.9),
    "delta": ({"clip_low": 0.2, "clip_high": 0.2}, 1.5),
    "normalize_advantages": ({}, True),
    "reward_min": ({}, -21.0),
    "reward_max": ({}, 21.0),
    "ratio_min": ({}, 0.95),
    "ratio_max": ({}, 1.05),
    "temperature_pos": ({}, 2.0),
    "temperature_neg": ({}, 2.0),
    "k_pos": ({}, 1.5),
    "lambda_pos": ({}, 1.5),
    "k_neg": ({}, 1.5),
    "lambda_neg": ({}, 1.5),
    "divergence": ({}, "kl"),
    "threshold": ({}, 1e-3),
    "share": ({}, 1.0),
    "cov_min": ({"share": 1.0}, -100.0),
    "cov_max": ({"share": 1.0}, 100.0),
    "coefficient": ({"share": 1.0}, 3.0),
    "discount": ({}, 0.5),
    "gae_lambda": ({}, 0.5),
    "whiten": ({}, False),
    "critic": ({}, "head"),
    "critic_lr": ({}, 1e-4),
    "critic_warmup_steps": ({}, 3),
    "value_coef": ({}, 0.5),
    "clip_value": ({}, 0.01),
    "proximal": ({}, "loglinear"),
    "weight_max": ({}, 1.05),
    "beta1": ({}, 2.0),
    "beta2": ({}, 0.1),
    "filter_all_incorrect": ({}, False),
    "loss": ({}, "ipo"),
    "preferences": ({}, "judge"),
    "truncated_penalty": ({}, 5.0),
    "pairing": ({}, "extremes"),
    "alpha": ({}, 0.1),
    "mixture": ({}, 0.5),
    "estimate": ({}, "sampled"),
    "temperature": ({}, 0.7),
    "top_k": ({"estimate": "top_k", "top_k": 4}, 9),
    "reward_coef": ({}, 0.3),
    "gamma": ({}, 0.3),
    "length_normalization": ({}, False),
    "own": ({"own": False}, True),
    "single_step": ({}, False),
    "filter_empty": ({}, False),
    "weight": ({}, 0.3),
    "tail": ({"estimate": "top_k", "top_k": 4}, True),
    "is_clip": ({}, 1.2),
    "skip_tokens": ({}, 2),
    "teacher": ({}, "live"),
    "ema_rate": ({"teacher": "ema"}, 0.5),
    "ema_every": ({"teacher": "ema"}, 3),
    "template": ({}, "{privileged_context} {prompt}"),
    "success": ({}, 0.5),
    "solutions": ({"feedback": True}, False),
    "own_solution": ({}, True),
    "feedback": ({}, True),
    "feedback_only_without_solution": ({"feedback": True}, True),
    "hide_thoughts": ({}, True),
    "max_prompt_tokens": ({}, 99),
    "solution_template": ({}, "{solution} is right."),
    "feedback_template": ({"feedback": True}, "{feedback} was said."),
}
"""Option: what has to be set for it to count, and a value that is nobody's default unless OTHERWISE says so."""

OTHERWISE = {
    ("rloo", "kl_in"): ({"beta": 0.3, "kl_estimator": "k3"}, "loss"),
    ("ppo", "kl_in"): ({"beta": 0.3, "kl_estimator": "k3"}, "loss"),
    ("dr_grpo", "normalization"): ({}, "token_mean"),
    ("dppo", "normalization"): ({}, "token_mean"),
    ("dapo", "dynamic_sampling"): ({}, False),
    # Of whole rollouts, whose ratio is far outside of a clip of 0.9 too.
    ("rloo", "clip_high"): ({}, 9.0),
    ("sdft", "estimate"): ({"alpha": 1.0}, "sampled"),
    ("sdpo", "estimate"): ({}, "full"),
    ("sdpo", "alpha"): ({"estimate": "full"}, 0.5),
    ("sdpo", "template"): ({}, "{solution} {prompt} {feedback}"),
}
FIXED = {
    ("bnpo", "baseline"): "the density is that of the group's mean",
    ("bnpo", "scale_rewards"): "the density takes the place of a spread",
    ("bnpo", "reward_aggregation"): "one density is fitted to the rewards",
    ("bnpo", "turn_discount"): "whole rollouts are compared",
    ("ppo", "baseline"): "the critic's values are the baseline",
    ("ppo", "scale_rewards"): "the advantages are whitened",
    ("ppo", "reward_aggregation"): "nothing is compared within a group",
    ("ppo", "turn_discount"): "turns are credited by the critic",
    ("gmpo", "delta"): "the clip of each side is by the sign of the advantage",
    ("rloo", "normalization"): "a rollout has one loss",
}
"""Shared options that have one value in an objective."""
REFUSED_EVERYWHERE = {
    ("bnpo", "running_baseline"): "its baseline is the group's",
    ("bnpo", "running_decay"): "its baseline is the group's",
    ("ppo", "running_baseline"): "its baseline is the critic",
    ("ppo", "running_decay"): "its baseline is the critic",
    ("rloo", "turn_discount"): "it has one loss a rollout",
    ("rloo", "top_entropy"): "it has one loss a rollout",
}
OPTIONS = [(name, field) for name in NAMES for field in get(name).config.model_fields if field != "name"]


def knob(name, field):
    context, value = OTHERWISE.get((name, field), KNOBS[field])
    allowed = get(name).config.model_fields
    return BASE.get(name, {}) | {key: one for key, one in context.items() if (name, key) not in FIXED and key in allowed}, value


@pytest.mark.parametrize("name", NAMES)
def test_every_option_changes_something(name):
    dead = []
    for _, field in (one for one in OPTIONS if one[0] == name and one not in FIXED and one not in REFUSED_EVERYWHERE):
        context, value = knob(name, field)
        assert value != get(name).config.model_fields[field].default, f"{field} needs another value here"
        if seen(name, context) == seen(name, context | {field: value}):
            dead.append(field)
    assert not dead


def test_the_same_options_are_seen_alike():
    """What is compared above is not different by itself."""
    for name in NAMES:
        assert seen(name, BASE.get(name, {})) == seen(name, BASE.get(name, {}))


def values_of(annotation):
    """How many values an option may take; None where there is no end to them."""
    if annotation is type(None):
        return 1
    return len(typing.get_args(annotation)) if typing.get_origin(annotation) is typing.Literal else None


def test_the_options_with_one_value_are_those_listed():
    found = {(name, field) for name, field in OPTIONS if values_of(get(name).config.model_fields[field].annotation) == 1}
    assert found == set(FIXED)


@pytest.mark.parametrize(("name", "field"), list(FIXED))
def test_an_option_with_one_value_takes_no_other(name, field):
    value = "batch" if field == "baseline" else KNOBS[field][1]
    with pytest.raises(ConfigError, match=field):
        validate({"name": name, field: value})


@pytest.mark.parametrize(("name", "field"), list(REFUSED_EVERYWHERE))
def test_an_option_that_could_do_nothing_is_refused(name, field):
    with pytest.raises(ConfigError, match=field):
        validate({"name": name, field: KNOBS[field][1]})


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_default_and_words(name):
    for field, info in get(name).config.model_fields.items():
        assert info.default is not PydanticUndefined or info.default_factory is not None
        assert info.description or field == "name" or field in {one for _, one in FIXED} or field in SHARED_WORDS


SHARED_WORDS = set(get("grpo").config.model_fields)
"""Described where they are defined; an objective that only changes a default says nothing more."""


# Corrections.

BANDS = {"min": ({"max": 1.3}, 0.9), "max": ({"min": 0.1}, 0.9)}
CORRECTION_KNOBS = {
    **{(name, field): knob for name in ("tis", "sequence_tis", "icepop", "sequence_mask") for field, knob in BANDS.items()},
    ("sequence_mask", "max"): ({"min": 0.01, "max": 9.0}, 0.5),
    ("sequence_mask", "measure"): ({"min": 0.5, "max": 1.3}, "geometric"),
    ("off_policy_mask", "threshold"): ({}, 3.0),
    ("veto", "below"): ({}, 0.9),
    ("ratio_cap", "max"): ({}, 1.1),
}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, kind in CORRECTIONS.items() for field in kind.model_fields if field != "name"]
)
def test_every_option_of_a_correction_changes_its_factors(name, field):
    context, value = CORRECTION_KNOBS[name, field]
    inputs = batch(NOW, SAMPLER, GIVEN, **COLUMNS)
    one, other = (correct(inputs, [CORRECTIONS[name](**options)])[0].tolist() for options in (context, context | {field: value}))
    assert one != other
