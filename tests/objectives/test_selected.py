from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import batch, losses, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import StepColumns, get, validate
from agentrl.objectives.selected import covariances

TOKENS = st.lists(st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 1.0]), st.floats(-3, 3)), max_size=30)


def columns(advantages, logs, *, sampler=-2.0, seed=(1, 2)):
    """Tokens by their advantage and log(start / sampler)."""
    count = len(advantages)
    given_ = np.array(advantages, dtype=float)
    return StepColumns(
        advantages=given_,
        sampler_logprobs=np.full(count, sampler),
        start_logprobs=sampler + np.array(logs, dtype=float),
        start_entropy=np.linspace(0, 1, count),
        rollout=np.zeros(count, dtype=np.int64),
        seed=seed,
    )


def select(name, step, **options):
    return get(name).select(step, validate({"name": name, **options}))


# M2PO.


def kept_by_the_paper(step, threshold):
    """Algorithm 1, as it is written: while the mean over the candidates exceeds the threshold, mask the largest."""
    log = step.start_logprobs - step.sampler_logprobs
    rows = zip(step.advantages, log, strict=True)
    left = {at: value**2 for at, (advantage, value) in enumerate(rows) if (advantage > 0 and value > 0) or (advantage < 0 and value < 0)}
    others = set(range(len(log))) - set(left)
    while left and math.fsum(left.values()) / len(left) > threshold:
        del left[max(left, key=left.__getitem__)]
    return others, left


@given(TOKENS, st.floats(1e-4, 4))
def test_m2po_is_the_algorithm_of_the_paper(tokens, threshold):
    step = columns([row[0] for row in tokens], [row[1] for row in tokens])
    keep = select("m2po", step, threshold=threshold)["within"]
    others, left = kept_by_the_paper(step, threshold)
    assert all(keep[at] == 1 for at in others)
    squares = (step.start_logprobs - step.sampler_logprobs) ** 2
    kept = [at for at in range(len(keep)) if keep[at] == 1 and at not in others]
    assert sorted(squares[kept].tolist()) == pytest.approx(sorted(left.values()))  # which of equal ones goes is free
    assert len(kept) == len(left)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("count", [3, 7, 49, 1000])
def test_equal_squares_at_the_threshold_all_stay_or_all_go(value, count):
    """Running means of equal numbers are equal but for rounding, which must not cut some of them off."""
    step = columns([1.0] * count, [value] * count, sampler=0.0)
    square = (step.start_logprobs[0] - step.sampler_logprobs[0]) ** 2
    assert select("m2po", step, threshold=square * (1 + 1e-12))["within"].all()
    assert not select("m2po", step, threshold=square * (1 - 1e-9))["within"].any()


def test_m2po_by_hand():
    # Candidates: 0.1, 0.2, 0.6 (A > 0) and -0.4 (A < 0): squares 0.01, 0.04, 0.16, 0.36; means 0.01, 0.025, 0.07, 0.1425.
    step = columns([1, 1, 1, -1, 1, -1, 0], [0.1, 0.2, 0.6, -0.4, -3.0, 3.0, 3.0])
    assert select("m2po", step)["within"].tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert select("m2po", step, threshold=0.07 + 1e-9)["within"].tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert select("m2po", step, threshold=0.2)["within"].tolist() == [1] * 7
    assert select("m2po", step, threshold=0.005)["within"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_m2po_masks_without_a_clip_and_divides_by_all_tokens():
    inputs = batch([[0.0, 0.0], [0.0]], [[-1.0, -3.0], [-0.5]], [1.0, -1.0], within=[[1.0, 0.0], [1.0]])
    found = losses("m2po", inputs)
    assert found.loss.tolist() == pytest.approx([-math.e, 0, math.exp(0.5)])
    assert slopes(found, inputs).tolist() == pytest.approx([-math.e, 0, math.exp(0.5)])
    assert found.metrics["correction/masked"].tolist() == [0, 1, 0]


# Clip-Cov.


def spread_of(count=1000, seed=3):
    draw = np.random.default_rng(seed)
    return columns(draw.choice([-1.0, 2.0], count), draw.normal(0, 2, count))


@pytest.mark.parametrize("share", [0.002, 0.05, 1.0])
def test_clip_cov_draws_that_many_of_those_in_range(share):
    step = spread_of()
    cov = covariances(step)
    eligible = (cov >= 1) & (cov <= 5)
    found = select("clip_cov", step, share=share)["detached"]
    assert found.sum() == min(eligible.sum(), math.floor(share * len(cov)))
    assert eligible[found > 0].all()
    assert set(found.tolist()) <= {0.0, 1.0}
    everyone = select("clip_cov", step, share=1.0, cov_min=-1e9, cov_max=1e9)["detached"]
    assert everyone.all()


def test_clip_cov_draws_by_the_seed_of_the_step_alone():
    one, again, other = (select("clip_cov", columns(*TWO, seed=seed), share=0.05)["detached"] for seed in ((7, 0), (7, 0), (7, 1)))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()
    assert one.sum() == other.sum() > 0


TWO = (np.random.default_rng(4).choice([-1.0, 2.0], 400), np.random.default_rng(5).normal(0, 2, 400))


def test_the_covariance_is_that_of_the_step():
    step = spread_of()
    assert covariances(step).mean() == pytest.approx(np.cov(step.start_logprobs, step.advantages, ddof=0)[0, 1])


@pytest.mark.parametrize("options", [{"share": 1e-4}, {"share": 1.0, "cov_min": 1e6, "cov_max": 2e6}])
def test_clip_cov_may_draw_nobody(options):
    assert not select("clip_cov", spread_of(), **options)["detached"].any()


def test_clip_cov_takes_the_gradient_and_leaves_the_loss():
    now, sampler, given_ = [[-1.0, -1.5]], [[-1.1, -1.4]], [2.0]
    plain = batch(now, sampler, given_, detached=[[0.0, 0.0]])
    drawn = batch(now, sampler, given_, detached=[[1.0, 0.0]])
    assert losses("clip_cov", drawn).loss.tolist() == losses("clip_cov", plain).loss.tolist() == losses("grpo", plain).loss.tolist()
    assert slopes(losses("clip_cov", drawn), drawn).tolist() == [0, slopes(losses("clip_cov", plain), plain)[1].item()]
    everyone = batch(now, sampler, given_, detached=[[1.0, 1.0]])
    assert slopes(losses("clip_cov", everyone), everyone).tolist() == [0, 0]


def test_an_empty_range_is_refused():
    with pytest.raises(ConfigError, match=r"cov_min=5.0 must not exceed cov_max=1.0"):
        validate({"name": "clip_cov", "cov_min": 5, "cov_max": 1})


# KL-Cov.


@given(TOKENS, st.floats(0.01, 1))
def test_kl_cov_holds_the_highest(tokens, share):
    step = columns([row[0] for row in tokens], [row[1] for row in tokens])
    held = select("kl_cov", step, share=share)["held"]
    count = math.floor(share * len(tokens))
    assert held.sum() == count
    if 0 < count < len(tokens):
        cov = covariances(step)
        assert cov[held > 0].min() >= cov[held == 0].max()


def test_kl_cov_takes_the_first_of_equal_ones():
    step = columns([1.0] * 6, [0.5] * 6)  # every covariance is 0
    assert select("kl_cov", step, share=0.5)["held"].tolist() == [1, 1, 1, 0, 0, 0]
    assert not select("kl_cov", columns([1.0] * 499, [0.5] * 499))["held"].any()  # floor(0.002 * 499) = 0
    assert select("kl_cov", columns([1.0] * 500, [0.5] * 500))["held"].sum() == 1


def test_kl_cov_holds_by_the_distance_from_the_anchor():
    # log r = 0.5 and -0.5, A = 2: the loss -2 r + c 0.5; its slope -2 r + c and -2 r - c: back to where the token was.
    inputs = batch([[-1.0, -1.5]], [[-1.5, -1.0]], [2.0], held=[[1.0, 1.0]])
    found = losses("kl_cov", inputs, coefficient=3.0)
    up, down = math.exp(0.5), math.exp(-0.5)
    assert found.loss.tolist() == pytest.approx([-2 * up + 1.5, -2 * down + 1.5])
    assert slopes(found, inputs).tolist() == pytest.approx([-2 * up + 3, -2 * down - 3])
    loose = batch([[-1.0, -1.5]], [[-1.5, -1.0]], [2.0], held=[[0.0, 0.0]])
    assert slopes(losses("kl_cov", loose, coefficient=3.0), loose).tolist() == pytest.approx([-2 * up, -2 * down])  # no clip
    assert not get("kl_cov").zero_advantage_is_zero_loss(validate({"name": "kl_cov"}))


@pytest.mark.parametrize(("name", "column"), [("m2po", "within"), ("clip_cov", "detached"), ("kl_cov", "held")])
def test_steps_of_no_token_and_of_one(name, column):
    assert select(name, columns([], []))[column].tolist() == []
    assert select(name, columns([1.0], [0.01]))[column].tolist() == [1.0 if name == "m2po" else 0.0]
    assert select(name, columns([1.0], [0.01]), top_entropy=0.5)["keep"].tolist() == [1]
    assert get(name).needs(validate({"name": name})).start
