from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentrl.objectives import GroupSignals, Needs, get, validate
from agentrl.objectives.rloo import rollout_losses

LN = math.log


def rloo(**options):
    return validate({"name": "rloo", "beta": 0, **options})


def grad(loss, batch):
    return torch.autograd.grad(loss, batch.logprobs)[0].tolist()


def test_hand_worked_example(batch_of, reduced):
    # Rewards 1, 0, 0.5: A = 1 - (0 + 0.5) / 2, 0 - (1 + 0.5) / 2, 0.5 - (1 + 0) / 2 = 0.75, -0.75, 0
    advantages = get("rloo").advantages([GroupSignals(rewards=np.array([1.0, 0.0, 0.5]))], rloo())[0]
    assert advantages.tolist() == [0.75, -0.75, 0.0]

    # Ratios of whole rollouts: (0.55 / 0.5) * (0.42 / 0.4) = 1.1 * 1.05 = 1.155; 0.1 / 0.2 = 0.5, clipped at 0.8; 0.3 / 0.3 = 1.
    batch = batch_of([[LN(0.55), LN(0.42)], [LN(0.1)], [LN(0.3)]], [[LN(0.5), LN(0.4)], [LN(0.2)], [LN(0.3)]], advantages)
    losses = rollout_losses(batch, rloo())
    # -1.155 * 0.75 = -0.86625; -min(0.5 * -0.75, 0.8 * -0.75) = 0.6; 0
    assert losses.per == "rollout"
    assert losses.loss.tolist() == pytest.approx([-0.86625, 0.6, 0], rel=1e-12)
    # Each token of rollout 0 carries the rollout's ratio * A; rollout 1 is cut off; rollout 2 has A = 0.
    assert grad(losses.loss.sum(), batch) == pytest.approx([-0.86625, -0.86625, 0, 0], rel=1e-12)
    assert reduced(losses, [2, 1, 1], get("rloo").normalization(rloo()), 4).item() == pytest.approx(-0.26625 / 3, rel=1e-12)
    assert {name: metric.tolist() for name, metric in losses.metrics.items()} == {
        "clip_ratio/low_mean": [0, 1, 0],
        "clip_ratio/high_mean": [0, 0, 0],
        "clip_ratio/region_mean": [0, 1, 0],
    }


def test_on_policy_it_is_reinforce(batch_of):
    now = [[-1.0, -2.5], [-0.3]]
    batch = batch_of(now, now, [0.4, -0.4])
    assert grad(rollout_losses(batch, rloo()).loss.sum(), batch) == pytest.approx([-0.4, -0.4, 0.4], rel=1e-12)


def test_kl_metric_sums_over_the_rollout(batch_of):
    batch = batch_of([[-1.0, -2.0], [-0.5]], [[-1.0, -2.0], [-0.5]], [1.0, -1.0], reference=[[-1.5, -1.0], [-2.0]])
    losses = rollout_losses(batch, rloo(beta=0.05))
    assert losses.metrics["kl/per_rollout"].tolist() == pytest.approx([-0.5, 1.5])
    assert losses.loss.tolist() == rollout_losses(batch, rloo()).loss.tolist()  # the penalty is in the advantage


@pytest.mark.parametrize(
    ("advantage", "ratio", "sign"), [(1, 0.5, -1), (1, 1, -1), (1, 1.5, 0), (-1, 0.5, 0), (-1, 1, 1), (-1, 1.5, 1), (0, 1, 0)]
)
def test_gradient_sign(batch_of, advantage, ratio, sign):
    half = LN(ratio) / 2
    batch = batch_of([[-1 + half, -2 + half]], [[-1.0, -2.0]], [float(advantage)])
    for slope in grad(rollout_losses(batch, rloo()).loss.sum(), batch):
        assert (slope > 0) - (slope < 0) == sign


@pytest.mark.parametrize("advantage", [-3.0, 3.0])
def test_extreme_ratios_stay_finite(batch_of, advantage):
    batch = batch_of([[-3.0] * 5, [-100.0] * 5], [[-30.0] * 5, [-0.1] * 5], [advantage] * 2, dtype=torch.float32)
    losses = rollout_losses(batch, rloo())
    assert torch.isfinite(losses.loss).all()
    slopes = torch.autograd.grad(losses.loss.sum(), batch.logprobs)[0]
    assert torch.isfinite(slopes).all()
    assert slopes.abs().max() <= 3 * math.exp(20) * 1.001


@pytest.mark.parametrize("options", [{}, {"clip_low": 1, "clip_high": 1e9}])
def test_gradient_equals_finite_differences(batch_of, options):
    sampler = [[-1.0, -2.0, -0.3], [-0.7], [-1.9, -0.4], [-2.0, -2.0]]
    shifts = torch.tensor([0.1, -0.3, 0.05, 0.9, -0.4, -0.2, 0.2, 0.4], dtype=torch.float64)

    def loss(now):
        batch = batch_of([now[:3], now[3:4], now[4:6], now[6:]], sampler, [1.3, -0.4, -2.0, 0.7])
        return rollout_losses(batch, rloo(**options)).loss

    start = torch.cat([torch.tensor(row, dtype=torch.float64) for row in sampler]) + shifts
    assert torch.autograd.gradcheck(loss, (start.requires_grad_(),), eps=1e-6, atol=1e-7, rtol=1e-7)


def test_a_rollout_without_trained_tokens_has_no_gradient_and_no_nan(batch_of):
    batch = batch_of([[-1.0], []], [[-1.0], []], [1.0, -1.0])
    losses = rollout_losses(batch, rloo())
    assert losses.loss.tolist() == [-1, 1]
    assert grad(losses.loss.sum(), batch) == [-1]


def test_zero_advantage_means_zero_loss_where_it_says_so(batch_of):
    objective = get("rloo")
    assert objective.zero_advantage_is_zero_loss(rloo())
    batch = batch_of([[-1.0, -9.0]], [[-3.0, -1.0]], [0.0])
    losses = rollout_losses(batch, rloo())
    assert losses.loss.tolist() == [0]
    assert grad(losses.loss.sum(), batch) == [0, 0]
    assert not any(metric.any() for metric in losses.metrics.values())
    assert not objective.zero_advantage_is_zero_loss(rloo(beta=0.05))  # its KL metric would miss rollouts


def test_needs():
    objective = get("rloo")
    assert objective.needs(validate({"name": "rloo"})) == Needs(group_size=2, reference=True)
    assert objective.needs(rloo()) == Needs(group_size=2)
