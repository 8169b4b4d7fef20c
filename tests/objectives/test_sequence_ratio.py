from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import batch, losses, slopes

from agentrl.errors import ConfigError
from agentrl.objectives import get, validate

WIDE = {"clip_low": 1, "clip_high": 1e8}
ROWS = st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=5), min_size=1, max_size=4)


def of(logs, given_, *, sampler=-3.0, dtype=torch.float64, **columns):
    """Rollouts of lists of log(policy / sampler)."""
    return batch(
        [[sampler + value for value in row] for row in logs], [[sampler] * len(row) for row in logs], given_, dtype=dtype, **columns
    )


def moved(inputs, order):
    """The same tokens in another order, as packed rows of several turns lay them."""
    names = ("logprobs", "sampler_logprobs", "advantages", "rollout")
    return dataclasses.replace(inputs, **{name: getattr(inputs, name).detach()[order] for name in names})


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "luspo", "gmpo"])
def test_a_rollout_is_one_however_its_tokens_lie(name):
    """Three turns in one row, or in rows of their own between another rollout's: the same ratio, loss and gradient of each token."""
    inputs = of([[0.1, -0.2, 0.3, 0.05], [0.2, 0.1]], [1.0, -0.5])
    order = [4, 2, 0, 5, 3, 1]
    other = moved(inputs, order)
    other.logprobs.requires_grad_()
    one, two = losses(name, inputs, **WIDE), losses(name, other, **WIDE)
    assert two.loss.tolist() == pytest.approx(one.loss[order].tolist(), rel=1e-14)
    assert slopes(two, other).tolist() == pytest.approx(slopes(one, inputs)[order].tolist(), rel=1e-14)


def test_gspo_pieces_of_a_rollout_would_be_another_ratio():
    """Why a rollout is never cut: the geometric mean of a piece is not that of the whole."""
    whole = losses("gspo", of([[0.4, 0.4, -0.4]], [1.0]), **WIDE).loss
    pieces = losses("gspo", of([[0.4, 0.4], [-0.4]], [1.0, 1.0]), **WIDE).loss
    assert whole.tolist() == pytest.approx([-math.exp(0.4 / 3)] * 3)
    assert pieces.tolist() == pytest.approx([-math.exp(0.4)] * 2 + [-math.exp(-0.4)])


@given(ROWS, st.sampled_from([-1.0, 2.0]))
def test_gspo_token_is_gspo_where_a_rollout_has_one_advantage(logs, given_):
    given_ = [given_ * (-1) ** at for at in range(len(logs))]
    inputs = of(logs, given_)
    one, two = losses("gspo", inputs), losses("gspo_token", inputs)
    assert two.loss.tolist() == pytest.approx(one.loss.tolist(), rel=1e-12)
    # A mean over the rollout's tokens: the whole ratio's gradient is the same on each of them.
    sizes = torch.tensor([len(row) for row in logs])[inputs.rollout]
    whole = torch.autograd.grad((one.loss / sizes).sum(), inputs.logprobs)[0]
    by_token = torch.autograd.grad((two.loss / sizes).sum(), inputs.logprobs)[0]
    assert by_token.tolist() == pytest.approx(whole.tolist(), rel=1e-9, abs=1e-12)


def test_gspo_token_gives_each_turn_its_own_gradient():
    inputs = of([[0.0, 0.0]], [[1.0, -2.0]])
    assert slopes(losses("gspo_token", inputs), inputs).tolist() == [-1, 2]
    assert slopes(losses("gspo", inputs), inputs).tolist() == pytest.approx([0.5, 0.5])  # each turn pulls at all tokens


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_the_clip_is_of_the_whole_rollout(name):
    """One token of ratio e^0.4 among many does not clip; a mean of 5e-4 does, where A > 0."""
    wide = of([[0.4, -0.3999]], [1.0])  # mean 5e-5
    assert slopes(losses(name, wide), wide).abs().min() > 0
    for given_, clipped in ((1.0, True), (-1.0, False)):
        inputs = of([[5e-4, 5e-4]], [given_])
        found = losses(name, inputs)
        assert (slopes(found, inputs) == 0).all().item() is clipped
        assert found.metrics["clip_ratio/high_mean"].tolist() == [float(clipped)] * 2
    for given_, clipped in ((1.0, False), (-1.0, True)):
        inputs = of([[-5e-4, -5e-4]], [given_])
        assert (slopes(losses(name, inputs), inputs) == 0).all().item() is clipped


def test_delta_caps_bad_rollouts():
    inputs = of([[1.0, 3.0]], [-1.0])
    assert losses("gspo", inputs).loss.tolist() == pytest.approx([math.exp(2)] * 2)
    assert losses("gspo", inputs, delta=4.0).loss.tolist() == [4, 4]
    assert slopes(losses("luspo", inputs, delta=4.0), inputs).tolist() == [0, 0]


def test_luspo_weighs_a_token_alike_in_short_and_long_rollouts():
    inputs = of([[0.0], [0.0] * 4], [1.0, 1.0])
    assert get("luspo").normalization(validate({"name": "luspo"})) == "sequence_sum"
    assert slopes(losses("luspo", inputs), inputs).tolist() == pytest.approx([-1] * 5)


# GMPO.


@pytest.mark.parametrize(
    ("log", "given_", "counted", "slope"),
    [
        (1.0, 1.0, 0.5, 0),  # above for A > 0: clipped at clip_high
        (-1.0, 1.0, -1.0, 1),  # below for A > 0: free
        (1.0, -1.0, 1.0, 1),
        (-1.0, -1.0, -0.3, 0),  # below for A < 0: clipped at -clip_low
        (0.45, 1.0, 0.45, 1),
        (-0.25, -1.0, -0.25, 1),
        (0.45, -1.0, 0.45, 1),
        (-0.45, -1.0, -0.3, 0),
    ],
)
def test_gmpo_clips_the_side_that_the_sign_pushes_to(log, given_, counted, slope):
    """Two bounds that differ: by the sign of A it is the upper or the lower one, never the other's number."""
    inputs = of([[log, 0.1]], [given_])
    found = losses("gmpo", inputs, clip_low=0.3, clip_high=0.5)
    ratio = math.exp((counted + 0.1) / 2)
    assert found.loss.tolist() == pytest.approx([-ratio * given_] * 2)
    assert slopes(found, inputs).tolist() == pytest.approx([-ratio * given_ * slope, -ratio * given_])
    assert found.metrics["clip_ratio/region_mean"].tolist() == [1 - slope, 0]
    high = found.metrics["clip_ratio/high_mean"].tolist()[0]
    assert high == float(not slope and given_ > 0)


@given(ROWS, st.floats(0.05, 2), st.floats(0.05, 2))
def test_gmpo_is_the_paper_s_product(logs, low, high):
    """(prod |min(r A, clip(r) A)|)^(1 / n) sgn(A), with |A| left whole."""
    given_ = [1.5 if at % 2 else -0.5 for at in range(len(logs))]
    found = losses("gmpo", of(logs, given_), clip_low=low, clip_high=high).loss.tolist()
    expected = []
    for row, advantage in zip(logs, given_, strict=True):
        ratios = [(math.exp(log), min(max(math.exp(log), math.exp(-low)), math.exp(high))) for log in row]
        factors = [abs(min(ratio * math.copysign(1, advantage), clipped * math.copysign(1, advantage))) for ratio, clipped in ratios]
        expected += [-(math.prod(factors) ** (1 / len(row))) * advantage] * len(row)
    assert found == pytest.approx(expected, rel=1e-9)


def test_gmpo_takes_clips_in_nats_and_no_delta():
    assert validate({"name": "gmpo", "clip_low": 3.0}).clip.high == 3.0
    with pytest.raises(ConfigError, match="delta"):
        validate({"name": "gmpo", "delta": 4.0})
    assert slopes(losses("gmpo", zero := of([[0.5, -0.5]], [0.0])), zero).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gspo", "gspo_token", "luspo", "gmpo"])
@pytest.mark.parametrize("options", [{}, WIDE])
def test_long_rollouts_of_extreme_tokens_are_finite(name, dtype, options):
    logs = [[60.0] * 50 + [-0.1], [-60.0] * 50 + [0.1], [60.0, -60.0] * 20]
    for sign in (1.0, -1.0):
        inputs = of(logs, [sign] * 3, dtype=dtype)
        found = losses(name, inputs, **options)
        assert torch.isfinite(found.loss).all()
        assert torch.isfinite(slopes(found, inputs)).all()
    # 60 and -60 cancel exactly: the mean is taken before anything is exponentiated or capped.
    open_ended = losses(name, of([[60.0, -60.0]], [1.0], dtype=dtype), **WIDE).loss
    if name != "gmpo":
        assert open_ended.tolist() == [-1, -1]
