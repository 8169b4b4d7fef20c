from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import pytest
import torch

from agentrl.errors import ConfigError
from agentrl.learner.optim import learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.learner import Learner

PPO = {"name": "ppo", "epochs": 1}


def learner_of(folder: str, objective: dict[str, Any], **learner: Any) -> Learner:
    return fakes.make_learner(folder, fakes.run_config(learner={"lr": 0.01, "weight_decay": 0.1} | learner), objective)


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", ["head", "model"])
@pytest.mark.parametrize("adapter", [None, {"rank": 2}], ids=["whole", "lora"])
def test_a_warm_up_moves_the_critic_alone(kind: str, adapter: Any, model_folder: Callable[..., str]) -> None:
    objective = PPO | {"critic": kind, "critic_warmup_steps": 2, "epochs": 2, "minibatches": 2}
    learner = learner_of(model_folder(), objective, lora=adapter)
    policy, mark = parameters(learner.policy.model), learner.fingerprint()
    critic = learner.policy.value_head if kind == "head" else learner.models.critic
    for seed in range(2):
        before = parameters(critic)
        metrics = learner.update(fakes.make_groups(seed))
        assert metrics["learner/optimizer_steps"] == 4
        assert metrics["learner/skipped"] == 0
        assert equal(parameters(learner.policy.model), policy)
        assert learner.fingerprint() == mark
        assert not any(torch.equal(one, before[name]) for name, one in critic.named_parameters())
    held = {parameter for optimizer in learner.models.optimizers for parameter in optimizer.state}
    assert held == set(critic.parameters()), "the policy's first moments are those of its first step"
    learner.update(fakes.make_groups(2))
    assert learner.fingerprint() != mark


@pytest.mark.parametrize("kind", ["head", "model"])
def test_the_first_step_after_a_warm_up_is_that_of_a_fresh_optimizer(kind: str, model_folder: Callable[..., str]) -> None:
    objective = PPO | {"critic": kind, "whiten": False, "beta": 0.0}
    warm = learner_of(model_folder(), objective | {"critic_warmup_steps": 2})
    for seed in range(2):
        warm.update(fakes.make_groups(seed))
    fresh = learner_of(model_folder(), objective)
    fresh.step = warm.step  # the schedule goes on, whatever is trained
    twin = fresh.policy.value_head if kind == "head" else fresh.models.critic
    twin.load_state_dict((warm.policy.value_head if kind == "head" else warm.models.critic).state_dict())
    for learner in (warm, fresh):
        learner.update(fakes.make_groups(7))
    assert equal(parameters(warm.policy.model), parameters(fresh.policy.model))


def test_a_critic_of_its_own_has_its_own_rate_on_the_same_schedule(model_folder: Callable[..., str]) -> None:
    for given, factor in ((None, 10.0), (0.03, 3.0)):
        learner = learner_of(model_folder(), PPO | {"critic_lr": given}, schedule="cosine", warmup_steps=2)
        for step in range(4):
            metrics = learner.update(fakes.make_groups(step))
            rate = learning_rate(learner.config.learner, step, learner.config.steps)
            assert metrics["learning_rate"] == rate
            rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in learner.models.optimizers]
            assert rates[0] == [rate] * 2
            assert rates[1] == pytest.approx([rate * factor] * 2)


def test_the_policys_clip_does_not_see_a_critic_of_its_own(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(2)
    moved = []
    for weight in (1e-3, 1e3):
        learner = learner_of(model_folder(), PPO | {"value_coef": weight}, max_grad_norm=0.01)
        metrics = learner.update(groups)
        assert metrics["critic/grad_norm"] > 0
        moved.append(parameters(learner.policy))
    assert equal(*moved)


@pytest.mark.parametrize("rate", [0.25, 0.6, 1.0])
def test_the_reference_follows_at_its_steps(rate: float, model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(), {"name": "grpo", "beta": 0.1}, reference_sync={"every": 3, "rate": rate})
    expected = parameters(learner.models.reference)
    for step in range(1, 8):
        learner.update(fakes.make_groups(step))
        if step % 3 == 0:
            policy = parameters(learner.policy)
            expected = {name: (1 - rate) * one + rate * policy[name] for name, one in expected.items()}
        for name, one in learner.models.reference.named_parameters():
            torch.testing.assert_close(one, expected[name], rtol=1e-6, atol=1e-8)
            assert not one.requires_grad


def test_a_reference_that_has_caught_up_gives_no_kl(model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(), {"name": "grpo", "beta": 0.1}, reference_sync={"every": 1, "rate": 1.0})
    assert all(learner.update(fakes.make_groups(seed))["kl"] < 1e-6 for seed in range(3))
    assert equal(parameters(learner.policy), parameters(learner.models.reference))


def test_a_reference_moves_beside_a_value_head_and_on_skipped_steps(model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(), PPO | {"critic": "head"}, reference_sync={"every": 2, "rate": 1.0})
    learner.update(fakes.make_groups(0))
    assert not equal(parameters(learner.policy.model), parameters(learner.models.reference.model))
    assert learner.update([])["learner/skipped"] == 1
    assert equal(parameters(learner.policy.model), parameters(learner.models.reference.model))


def test_an_adapter_has_no_reference_to_move(model_folder: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"learner\.reference_sync moves the reference .* never moves: remove one of the two"):
        learner_of(model_folder(), {"name": "grpo", "beta": 0.1}, reference_sync={}, lora={"rank": 2})
