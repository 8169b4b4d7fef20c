from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import SHARED, Walk, batch, losses, slopes

from agentrl.errors import ConfigError
from agentrl.learner.metrics import effective_share
from agentrl.objectives import get, validate
from agentrl.objectives.corrections import CORRECTIONS, correct

LN = math.log
WEIGHTS = [name for name, kind in CORRECTIONS.items() if kind.weighs]
MASKS = [name for name, kind in CORRECTIONS.items() if not kind.weighs]
AT_THE_SAMPLER = {"aipo", "vespo", "dppo", "m2po", "decoupled_ppo"}
"""Objectives whose loss carries policy / sampler, whatever stands in the list of corrections."""
OPEN = {"tis": {"max": 1e8}, "sequence_tis": {"max": 1e8}, "icepop": {"min": 0, "max": 1e8}}
"""Weights without a bound that the toys reach."""


def factors(rho, options, given=None):
    """Factors and metrics where start / sampler is `rho`, rollouts of lists, and the policy is the start."""
    start = [[LN(value) - 1 for value in row] for row in rho]
    inputs = batch(start, [[-1.0] * len(row) for row in rho], given or [1.0] * len(rho))
    config = validate({"name": "grpo", "corrections": options})
    found, metrics = correct(inputs, config.corrections)
    return found.tolist(), {name: values.tolist() for name, values in metrics.items()}


@pytest.mark.parametrize(
    ("name", "options", "expected", "struck"),
    [
        ("tis", {}, [0.5, 2, 2, 0.25], [0, 1, 0, 0]),
        ("tis", {"min": 0.3, "max": 3}, [0.5, 3, 2, 0.3], [0, 1, 0, 1]),
        ("sequence_tis", {"max": 3}, [3, 3, 0.5, 0.5], [1, 1, 0, 0]),  # products 4 and 0.5
        ("sequence_tis", {"min": 0.6, "max": 9}, [4, 4, 0.6, 0.6], [0, 0, 1, 1]),
        ("icepop", {"min": 0.5 - 1e-9, "max": 2 + 1e-9}, [0.5, 0, 2, 0], [0, 1, 0, 1]),
        ("icepop", {"min": 0.5 + 1e-9, "max": 2 - 1e-9}, [0, 0, 0, 0], [1, 1, 1, 1]),
        ("icepop", {"min": 1, "max": 9}, [0, 8, 2, 0], [1, 0, 0, 1]),
        ("sequence_mask", {}, [0, 0, 1, 1], [1, 1, 0, 0]),
        ("sequence_mask", {"min": 0.5 - 1e-9, "max": 4 + 1e-9}, [1, 1, 1, 1], [0, 0, 0, 0]),
        ("sequence_mask", {"measure": "geometric", "min": 0.8, "max": 1.9}, [0, 0, 0, 0], [1, 1, 1, 1]),  # 2 and 0.7071
        ("sequence_mask", {"measure": "geometric", "min": 0.7}, [1, 1, 1, 1], [0, 0, 0, 0]),
        ("veto", {"below": 0.3}, [1, 1, 0, 0], [0, 0, 1, 1]),
        ("veto", {"below": 0.25 - 1e-9}, [1, 1, 1, 1], [0, 0, 0, 0]),
        ("ratio_cap", {"max": 8 - 1e-6}, [1, 0, 1, 1], [0, 1, 0, 0]),
        ("ratio_cap", {"max": 8 + 1e-6}, [1, 1, 1, 1], [0, 0, 0, 0]),
    ],
)
def test_each_factor_by_hand(name, options, expected, struck):
    found, metrics = factors([[0.5, 8], [2, 0.25]], [{"name": name, **options}])
    assert found == pytest.approx(expected, rel=1e-12)
    (shown,) = [metrics[f"correction/{name}_{what}"] for what in ("masked", "clipped") if f"correction/{name}_{what}" in metrics]
    assert shown == struck
    assert metrics["correction/masked"] == [float(value == 0) for value in expected]


@pytest.mark.parametrize(("threshold", "kept"), [(LN(2) / 2 + 1e-9, 1.0), (LN(2) / 2 - 1e-9, 0.0)])
def test_the_off_policy_mask_leaves_out_bad_rollouts_that_the_learner_has_left(threshold, kept):
    """The mean of sampler - start is ln 2 / 2 a token in the first and the third rollout, and -ln 2 in the second."""
    found, _ = factors([[0.5, 1.0], [2.0], [0.5, 1.0]], [{"name": "off_policy_mask", "threshold": threshold}], [-1.0, -1.0, 1.0])
    assert found == [kept, kept, 1, 1, 1]


def test_the_off_policy_mask_counts_each_turn_by_its_own_sign():
    inputs = batch([[-2.0, -2.0]], [[-1.0, -1.0]], [[-1.0, 1.0]])
    found, _ = correct(inputs, validate({"name": "grpo", "corrections": [{"name": "off_policy_mask"}]}).corrections)
    assert found.tolist() == [0, 1]


LISTS = [list(names) for count in range(len(MASKS) + 1) for names in itertools.combinations(MASKS, count)]
TIGHT = {"sequence_mask": {"max": 3}, "off_policy_mask": {"threshold": 0.2}, "veto": {"below": 0.2}, "ratio_cap": {"max": 2.5}}
TIGHT |= {"tis": {"max": 1.5}, "sequence_tis": {"max": 1.5}, "icepop": {"min": 0.5, "max": 1.5}}


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from(LISTS),
    st.sampled_from([*WEIGHTS, None]),
    st.randoms(use_true_random=False),
)
def test_corrections_compose_by_multiplication_in_any_order(logs, masks, weight, draw):
    rho = [[math.exp(value) for value in row] for row in logs]
    given = [draw.choice([-1.0, 1.0]) for _ in rho]
    options = [{"name": name, **TIGHT[name]} for name in [*masks, *([weight] if weight else [])]]
    found, metrics = factors(rho, options, given)
    product = np.prod([factors(rho, [one], given)[0] for one in options] or [[1.0] * len(found)], axis=0)
    assert found == pytest.approx(product.tolist(), rel=1e-12)
    assert factors(rho, draw.sample(options, len(options)), given)[0] == pytest.approx(found, rel=1e-12)
    assert metrics["correction/masked"] == [float(value == 0) for value in found]
    if weight is None:
        assert set(found) <= {0.0, 1.0}


# Each mismatch is counted once.


def test_the_objectives_at_the_sampler_are_those_listed():
    found = {name for name in SHARED if not get(name).config.reanchors}
    assert found == AT_THE_SAMPLER


@pytest.mark.parametrize("weight", WEIGHTS)
def test_double_correction_is_refused(weight):
    for name in SHARED:
        refuses_double_correction(name, weight)


def refuses_double_correction(name, weight):
    options = {"name": name, "corrections": [{"name": weight}]}
    if name in AT_THE_SAMPLER:
        with pytest.raises(ConfigError, match=f"{weight} weighs .* ratio of {name} is policy / sampler already: .* corrected twice"):
            validate(options)
    elif name == "rloo" and weight != "sequence_tis":
        with pytest.raises(ConfigError, match=f"{weight} acts on tokens, and rloo has one loss a rollout: take one of sequence_tis"):
            validate(options)
    else:
        assert validate(options).reweighted
    for other in WEIGHTS:
        if other != weight:
            with pytest.raises(ConfigError, match=r"correct .* mismatch twice: keep one"):
                validate({"name": name, "corrections": [{"name": weight}, {"name": other}]})
    with pytest.raises(ConfigError, match=f"'{weight}' is named twice"):
        validate({"name": name, "corrections": [{"name": weight}, {"name": weight}]})


@pytest.mark.parametrize("mask", MASKS)
def test_masks_go_with_every_objective_and_with_a_weight(mask):
    for name in SHARED:
        if name == "rloo" and mask == "ratio_cap":
            with pytest.raises(ConfigError, match="ratio_cap acts on tokens"):
                validate({"name": name, "corrections": [{"name": mask}]})
            continue
        found = validate({"name": name, "corrections": [{"name": mask}]})
        assert found.reweighted == (name == "decoupled_ppo")
        if name not in AT_THE_SAMPLER:
            assert validate({"name": name, "corrections": [{"name": "sequence_tis"}, {"name": mask}]}).reweighted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "tis", "min": 2}, "min=2.0 must be below max=2.0"),
        ({"name": "icepop", "max": 0.5}, "min=0.5 must be below max=0.5"),
        ({"name": "veto", "below": 0}, "below. got 0; it must be more than 0"),
        ({"name": "ratio_cap", "max": 1}, "max. got 1; it must be more than 1"),
        ({"name": "tsi"}, "tis"),
        ({"name": "tis", "maximum": 3}, "maximum"),
    ],
)
def test_wrong_options_of_a_correction_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        validate({"name": "grpo", "corrections": [options]})


# What a weight makes of the gradient.


@pytest.mark.parametrize("name", ["grpo", "gspo_token", "cispo", "sapo", "reinforce"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_at_the_start_of_a_step_the_gradient_is_w_times_a(name, weight):
    """The sampler was another one: with the weight the ratio is 1 and rho is counted once, by the weight."""
    now, sampler, given = [[-1.0, -0.5], [-2.0]], [[-1.2, -0.4], [-1.7]], [1.5, -0.5]
    inputs = batch(now, sampler, given)
    rho = (inputs.logprobs - inputs.sampler_logprobs).detach().exp()
    if weight == "sequence_tis":
        rho = torch.stack([rho[:2].prod(), rho[:2].prod(), rho[2]])
    found = losses(name, inputs, corrections=[{"name": weight, **OPEN[weight]}])
    assert slopes(found, inputs).tolist() == pytest.approx((-rho * inputs.advantages).tolist(), rel=1e-12)
    assert found.weights.tolist() == pytest.approx(rho.tolist(), rel=1e-12)
    # In a later optimizer step the start stays where it was: weight start / sampler, ratio policy / start.
    start = [[-1.1, -0.5], [-1.9]]
    later = batch(now, sampler, given, start_logprobs=start)
    weights = losses(name, later, corrections=[{"name": weight, **OPEN[weight]}]).weights
    moved = (later.start_logprobs - later.sampler_logprobs).exp()
    if weight == "sequence_tis":
        moved = torch.stack([moved[:2].prod(), moved[:2].prod(), moved[2]])
    assert weights.tolist() == pytest.approx(moved.tolist(), rel=1e-12)


REWARD = dict(zip(Walk.EPISODES, (0.3, 1.0, -0.5, 2.0, 0.1, -1.5, 0.7), strict=True)) | {(1,): -1.2, (2,): 0.8}
SINGLE = ((0,), (1,), (2,))
POLICY, START, SAMPLER = Walk(1), Walk(2, scale=0.7), Walk(3, scale=0.6)
UNCLIPPED = {"clip_low": 1, "clip_high": 1e8}


@pytest.mark.parametrize(
    ("name", "weight", "episodes", "policy", "options"),
    [
        ("rloo", "sequence_tis", Walk.EPISODES, POLICY, UNCLIPPED | {"beta": 0.0}),
        # Its own ratio is a token's: exact where the learner has not moved since the step began.
        ("reinforce", "sequence_tis", Walk.EPISODES, START, {}),
        ("reinforce", "tis", SINGLE, POLICY, {"ratio_max": None}),
        ("grpo", "icepop", SINGLE, POLICY, UNCLIPPED | {"normalization": "sequence_sum"}),
        ("cispo", "tis", SINGLE, POLICY, {"ratio_max": 1e8}),
    ],
)
def test_without_caps_the_expected_gradient_is_the_policy_gradient_off_policy(name, weight, episodes, policy, options):
    """Drawn by another policy, and the learner has moved since the step began: start / sampler times policy / start, once each."""
    total = torch.zeros((), dtype=torch.float64)
    for episode in episodes:
        start, drawn = (one.logprobs(episode).detach() for one in (START, SAMPLER))
        inputs = batch([policy.logprobs(episode)], [drawn], [REWARD[episode]], start_logprobs=[start])
        found = losses(name, inputs, corrections=[{"name": weight, **OPEN[weight]}], **options)
        total = total + SAMPLER.chance(episode).item() * found.loss.sum()
    value = sum(policy.chance(episode) * REWARD[episode] for episode in episodes)
    torch.testing.assert_close(-policy.gradient(total), policy.gradient(value), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cap", [1.0, 1.5, 3.0, 1e8])
def test_a_cap_trades_bias_and_the_bias_goes_as_the_cap_grows(cap):
    """Single tokens, at the start of the step; the bias falls to 0 and no cap makes it larger than none at all."""
    true = START.gradient(sum(START.chance(one) * REWARD[one] for one in SINGLE))

    def bias(corrections):
        total = torch.zeros((), dtype=torch.float64)
        for one in SINGLE:
            inputs = batch([START.logprobs(one)], [SAMPLER.logprobs(one).detach()], [REWARD[one]])
            total = total + SAMPLER.chance(one).item() * losses("reinforce", inputs, corrections=corrections, ratio_max=None).loss.sum()
        return (-START.gradient(total) - true).norm().item()

    caps = [bias([{"name": "tis", "max": at}]) for at in (cap, 2 * cap)]
    assert caps[1] <= caps[0] + 1e-12
    assert bias([{"name": "tis", "max": 1e8}]) < 1e-12


# Extremes.

FAR = [[-3.0, -1.0], [-30.0, -1.0], [-1e-6, -0.1], [-200.0, -0.1]]
NEAR = [[-30.0, -1.0], [-3.0, -1.0], [-200.0, -0.1], [-1e-6, -0.1]]
"""The policy finds a token e^27 times as likely as the sampler did, and the reverse, and further than float32 holds."""


@pytest.mark.parametrize("name", SHARED)
def test_extreme_ratios_stay_finite_in_single_precision(name):
    ones = [[1.0, 1.0] for _ in FAR]
    columns = dict.fromkeys(("within", "detached", "held", "values", "start_values", "returns", "staleness"), ones)
    for correction, given_, start in itertools.product((None, *CORRECTIONS), (-2.0, 2.0), (FAR, NEAR, None)):
        if correction in WEIGHTS and (name in AT_THE_SAMPLER or (name == "rloo" and correction != "sequence_tis")):
            continue
        if (name, correction) == ("rloo", "ratio_cap"):
            continue
        options = validate({"name": name, "beta": 0.0, "corrections": [{"name": correction}] if correction else []})
        inputs = batch(FAR, NEAR, [given_] * 4, dtype=torch.float32, **columns, **({} if start is None else {"start_logprobs": start}))
        found = get(name).loss(inputs, options)
        slope = slopes(found, inputs)
        figures = [found.loss, slope, *found.metrics.values(), *found.token_metrics.values()]
        figures += [] if found.weights is None else [found.weights]
        assert all(torch.isfinite(one).all() for one in figures), (correction, given_, start)
        # A ratio at its cap, e^20; decoupled PPO has a weight beside it, and both may be there.
        assert slope.abs().max() <= 2 * 2.1 * math.exp(20) ** (2 if name == "decoupled_ppo" else 1) * (5 if correction in WEIGHTS else 1)


def test_what_a_loss_weighs_and_masks_itself_is_told_with_the_corrections():
    """Decoupled PPO has a weight of its own, which the effective sample size is of, and a mask that must not count twice."""
    now, sampler = [[-1.0, -1.0], [-2.0]], [[-3.0, -1.2], [-1.9]]
    alone = losses("decoupled_ppo", batch(now, sampler, [1.0, 1.0]))
    assert alone.weights.tolist() == pytest.approx([math.exp(2), math.exp(0.2), math.exp(-0.1)])
    both = losses("decoupled_ppo", batch(now, sampler, [1.0, 1.0]), weight_max=2.0, corrections=[{"name": "ratio_cap", "max": 1.2}])
    assert both.weights.tolist() == pytest.approx([0, 0, math.exp(-0.1)])
    assert both.token_metrics["correction/masked"].tolist() == [1, 1, 0]
    assert "correction/masked" not in both.metrics
    assert both.token_metrics["correction/ratio_cap_masked"].tolist() == [1, 1, 0]
    m2po = losses("m2po", batch(now, sampler, [1.0, 1.0], within=[[1.0, 0.0], [1.0]]), corrections=[{"name": "ratio_cap", "max": 2}])
    assert m2po.token_metrics["correction/masked"].tolist() == [1, 1, 0]


@given(st.lists(st.floats(0, 1e8), min_size=1, max_size=30))
def test_the_effective_share_lies_between_one_of_all_and_all(weights):
    found = effective_share(np.array(weights))
    if any(weight**2 for weight in weights):
        assert 1 / len(weights) * (1 - 1e-9) <= found <= 1 + 1e-9
    else:
        assert found == 0
    assert effective_share(np.full(len(weights), 0.3)) == pytest.approx(1)
    assert effective_share(np.eye(len(weights))[0]) == pytest.approx(1 / len(weights))
