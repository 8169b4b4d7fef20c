from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from agentrl.objectives import GroupSignals, Needs, TokenBatch, get, validate

LN = math.log


def grpo(**options):
    return validate({"name": "grpo", **options})


def token_losses(batch, config):
    """The whole loss of each token."""
    found = get("grpo").loss(batch, config)
    return dataclasses.replace(found, loss=sum(found.terms.values(), found.loss), metrics=found.metrics | found.token_metrics)


def grad(loss, batch):
    return torch.autograd.grad(loss, batch.logprobs)[0].tolist()


def test_hand_worked_example(batch_of, reduced):
    # Rewards 1 and 0: mean 0.5, deviations +-0.5, std sqrt(0.5) = 0.70710678; a = 0.5 / (0.70710678 + 0.0001) = 0.70700679.
    a = get("grpo").advantages([GroupSignals(rewards=np.array([1.0, 0.0]))], grpo())[0]
    assert a == pytest.approx([0.70700679, -0.70700679], rel=1e-7)

    # Rollout 0, A = +a: ratios 0.3 / 0.2 = 1.5 (clipped at 1.2) and 0.45 / 0.5 = 0.9. Rollout 1, A = -a: 0.1 / 0.2 = 0.5 (clipped at 0.8).
    batch = batch_of([[LN(0.3), LN(0.45)], [LN(0.1)]], [[LN(0.2), LN(0.5)], [LN(0.2)]], a)
    losses = token_losses(batch, grpo())
    # -min(1.5 a, 1.2 a) = -1.2 a; -min(0.9 a, 0.9 a) = -0.9 a; -min(0.5 * -a, 0.8 * -a) = 0.8 a
    assert losses.per == "token"
    assert losses.loss.tolist() == pytest.approx([-0.84840815, -0.63630611, 0.56560543], rel=1e-7)
    # d(ratio * A) / d(logprob) = ratio * A where the clip is inactive, 0 where it cuts off.
    assert grad(losses.loss.sum(), batch) == pytest.approx([0, -0.63630611, 0], rel=1e-7)

    lengths = [2, 1]
    # ((-1.2 - 0.9) / 2 + 0.8) / 2 a = -0.125 a;  (-1.2 - 0.9 + 0.8) / 3 a = -0.43333 a;  -1.3 a / (2 * 4)
    assert reduced(losses, lengths, "sequence_mean", 4).item() == pytest.approx(-0.125 * 0.70700679, rel=1e-7)
    assert reduced(losses, lengths, "token_mean", 4).item() == pytest.approx(-1.3 / 3 * 0.70700679, rel=1e-7)
    assert reduced(losses, lengths, "constant", 4).item() == pytest.approx(-1.3 / 8 * 0.70700679, rel=1e-7)
    assert {name: metric.tolist() for name, metric in losses.metrics.items()} == {
        "clip_ratio/low_mean": [0, 0, 1],
        "clip_ratio/high_mean": [1, 0, 0],
        "clip_ratio/region_mean": [1, 0, 1],
    }


def test_upper_clip_of_its_own(batch_of):
    batch = batch_of([[LN(0.25)]], [[LN(0.2)]], [2.0])  # ratio 1.25
    assert token_losses(batch, grpo()).loss.tolist() == pytest.approx([-2.4])
    assert token_losses(batch, grpo(clip_high=0.28)).loss.tolist() == pytest.approx([-2.5])


def test_delta_caps_the_ratio_of_bad_tokens_only(batch_of):
    batch = batch_of([[LN(0.5)], [LN(0.5)]], [[LN(0.1)], [LN(0.1)]], [-1.0, 1.0])  # ratio 5
    open_ended, capped = token_losses(batch, grpo()), token_losses(batch, grpo(delta=4))
    assert open_ended.loss.tolist() == pytest.approx([5, -1.2])
    assert grad(open_ended.loss.sum(), batch) == pytest.approx([5, 0])
    assert capped.loss.tolist() == pytest.approx([4, -1.2])
    assert grad(capped.loss.sum(), batch) == [0, 0]
    assert capped.metrics["clip_ratio/delta_mean"].tolist() == [1, 0]


def test_kl_term(batch_of):
    # d = ln 0.6 - ln 0.3 = ln 2: kl = 2 - ln 2 - 1 = 0.30685282, its derivative 1 - e^d = -1. The surrogate at ratio 1: -A, derivative -A.
    batch = batch_of([[LN(0.3)]], [[LN(0.3)]], [0.5], reference=[[LN(0.6)]])
    plain = token_losses(batch, grpo(beta=0.04, kl_correction=False))
    assert plain.loss.tolist() == pytest.approx([-0.5 + 0.04 * 0.30685282])
    assert grad(plain.loss.sum(), batch) == pytest.approx([-0.5 - 0.04])
    # Weighted: (r kl)' = r kl + r (1 - e^d) = r (e^d - d - 1 + 1 - e^d) = -r d; here r = 1.
    weighted = token_losses(batch, grpo(beta=0.04))
    assert weighted.loss.tolist() == plain.loss.tolist()
    assert grad(weighted.loss.sum(), batch) == pytest.approx([-0.5 - 0.04 * LN(2)])
    # With r = 0.3 / 0.25 = 1.2 both scale by it.
    batch = batch_of([[LN(0.3)]], [[LN(0.25)]], [0.0], reference=[[LN(0.6)]])
    weighted = token_losses(batch, grpo(beta=0.04))
    assert weighted.loss.tolist() == pytest.approx([0.04 * 1.2 * 0.30685282])
    assert grad(weighted.loss.sum(), batch) == pytest.approx([-0.04 * 1.2 * LN(2)])
    assert weighted.metrics["kl"].tolist() == pytest.approx([1.2 * 0.30685282])
    assert not weighted.metrics["kl"].requires_grad


@pytest.mark.parametrize(("correction", "slopes"), [(False, [1, 0]), (True, [79, -20])])
def test_kl_pulls_back_a_policy_far_above_the_reference_and_is_finite_far_below(batch_of, correction, slopes):
    batch = batch_of([[-1.0], [-90.0]], [[-1.0], [-90.0]], [0.0, 0.0], reference=[[-80.0], [-1.0]], dtype=torch.float32)
    losses = token_losses(batch, grpo(beta=1, kl_correction=correction))
    assert torch.isfinite(losses.loss).all()
    assert grad(losses.loss.sum(), batch) == pytest.approx(slopes)


@pytest.mark.parametrize(
    ("advantage", "ratio", "sign"), [(1, 0.5, -1), (1, 1, -1), (1, 1.5, 0), (-1, 0.5, 0), (-1, 1, 1), (-1, 1.5, 1), (0, 1, 0)]
)
def test_gradient_sign(batch_of, advantage, ratio, sign):
    batch = batch_of([[LN(0.4 * ratio)]], [[LN(0.4)]], [float(advantage)])
    (slope,) = grad(token_losses(batch, grpo()).loss.sum(), batch)
    assert (slope > 0) - (slope < 0) == sign


def test_the_denominator_is_the_sampler(batch_of):
    """Shifting the sampler's log-probs by a known amount scales loss and gradient by its exponential."""
    wide = grpo(clip_low=1, clip_high=1e9)
    now = [[-1.0, -2.0], [-0.5]]
    same = batch_of(now, now, [1.0, -2.0])
    moved = batch_of(now, [[value - 0.3 for value in row] for row in now], [1.0, -2.0])
    expected = token_losses(same, wide).loss * math.exp(0.3)
    assert token_losses(moved, wide).loss.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert grad(token_losses(moved, wide).loss.sum(), moved) == pytest.approx([-math.exp(0.3)] * 2 + [2 * math.exp(0.3)], rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"delta": 4.0}, {"clip_high": 0.28, "normalization": "token_mean"}, {"beta": 0.04}, {"beta": 0.04, "kl_correction": False}],
)
@pytest.mark.parametrize("advantage", [-3.0, 3.0])
def test_extreme_ratios_stay_finite(batch_of, options, advantage):
    now, sampler = [[-3.0, -0.1, -200.0]], [[-30.0, -200.0, -0.1]]
    batch = batch_of(now, sampler, [advantage], reference=[[-1.0, -100.0, -1.0]], dtype=torch.float32)
    losses = token_losses(batch, grpo(**options))
    assert torch.isfinite(losses.loss).all()
    slopes = torch.autograd.grad(losses.loss.sum(), batch.logprobs)[0]
    assert torch.isfinite(slopes).all()
    assert slopes.abs().max() <= (3 + 0.04 * 100) * math.exp(20) * 1.001
    if "delta" in options:
        assert slopes.abs().max() <= 3 * 4


@pytest.mark.parametrize(
    "options", [{}, {"delta": 1.5}, {"clip_low": 1, "clip_high": 1e9}, {"beta": 0.3}, {"beta": 0.3, "kl_correction": False}]
)
def test_gradient_equals_finite_differences(batch_of, options):
    generator = torch.Generator().manual_seed(3)
    sampler = torch.empty(12, dtype=torch.float64).uniform_(-4, -0.1, generator=generator)
    # Off the kinks of the clip at 0.8, 1.2 and 1.5, where no derivative exists.
    ratios = torch.tensor([0.3, 0.7, 0.9, 1.0, 1.1, 1.3, 1.7, 2.5, 0.85, 1.15, 0.5, 3.0], dtype=torch.float64)
    reference = torch.empty(12, dtype=torch.float64).uniform_(-4, -0.1, generator=generator)
    config = grpo(**options)

    def cut(values):
        return [values[:5], values[5:7], values[7:]]

    def loss(now):
        return token_losses(batch_of(cut(now), cut(sampler), [1.3, -0.4, -2.0], cut(reference)), config).loss

    assert torch.autograd.gradcheck(loss, ((sampler + ratios.log()).requires_grad_(),), eps=1e-6, atol=1e-7, rtol=1e-7)


def test_a_loss_does_not_depend_on_the_split_into_micro_batches(batch_of):
    now, sampler, advantages = [[-1.0, -2.0], [-0.5], [-3.0, -0.2, -1.0]], [[-1.1, -1.7], [-0.4], [-2.0, -0.9, -1.0]], [1.0, -0.5, 0.25]
    whole = token_losses(batch_of(now, sampler, advantages), grpo()).loss
    parts = [token_losses(batch_of([now[i]], [sampler[i]], [advantages[i]]), grpo()).loss for i in range(3)]
    assert whole.tolist() == torch.cat(parts).tolist()


def test_zero_advantage_means_zero_loss_where_it_says_so(batch_of):
    objective = get("grpo")
    assert objective.zero_advantage_is_zero_loss(grpo())
    assert not objective.zero_advantage_is_zero_loss(grpo(beta=0.04))
    batch = batch_of([[-1.0, -9.0]], [[-3.0, -1.0]], [0.0], reference=[[-2.0, -1.0]])
    losses = token_losses(batch, grpo(delta=4))
    assert losses.loss.tolist() == [0, 0]
    assert grad(losses.loss.sum(), batch) == [0, 0]
    assert not any(metric.any() for metric in losses.metrics.values())
    assert token_losses(batch, grpo(beta=0.04)).loss.abs().min() > 0


def test_empty_micro_batch(batch_of):
    empty = torch.zeros(0, dtype=torch.float64)
    batch = TokenBatch(
        logprobs=empty.clone().requires_grad_(),
        sampler_logprobs=empty,
        advantages=empty,
        rollout=torch.zeros(0, dtype=torch.int64),
        num_rollouts=1,
        rollout_advantages=torch.ones(1, dtype=torch.float64),
    )
    assert token_losses(batch, grpo()).loss.shape == (0,)


def test_needs():
    objective = get("grpo")
    assert objective.needs(grpo()) == Needs(group_size=2)
    assert objective.needs(grpo(beta=0.04)) == Needs(group_size=2, reference=True)
    assert objective.normalization(grpo()) == "sequence_mean"
    assert objective.normalization(grpo(normalization="constant")) == "constant"
