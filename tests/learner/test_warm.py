"""Optimizer steps that do not count."""

from __future__ import annotations

import dataclasses

import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers

from agentrl.errors import LearnerDiverged
from agentrl.objectives.sft import IMITATION
from agentrl.rows import rows_of

ADAPTIVE = {"name": "grpo", "beta": 0.1, "kl_target": 1.0, "baseline": "running", "scale_rewards": "none"}


def likelihood_gradient(folder, groups, temperature):
    """d/d weights of the mean of -log p over all sampled tokens, by transformers' own forward pass over whole rows, in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    parts = []
    for row in (row for group in groups for rollout in group.rollouts for row in rows_of(rollout)):
        logits = model(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None], use_cache=False).logits[0] / temperature
        places = np.flatnonzero(row.trained)
        targets = torch.from_numpy(row.ids[places].astype(np.int64))
        parts.append(-torch.log_softmax(logits, -1)[places - 1].gather(1, targets[:, None])[:, 0])
    loss = torch.cat(parts).mean()
    loss.backward()
    return {name: one.grad for name, one in model.named_parameters()}, float(loss.detach())


def warm_gradient(learner, groups, objective):
    """The gradient of a warm step whose learning rate is 0, and its metrics."""
    taken = {}

    def read(optimizer, *_):
        taken.update({name: one.grad.clone() for name, one in learner.policy.named_parameters() if one.grad is not None})

    handle = learner.models.optimizers[0].register_step_pre_hook(read)
    metrics = learner.warm(groups, objective, rate=0.0, number=0)
    handle.remove()
    return taken, metrics


def at_temperature(groups, temperature):
    def resampled(turn):
        return dataclasses.replace(turn, contract=dataclasses.replace(turn.contract, temperature=temperature))

    return [
        dataclasses.replace(
            group, rollouts=tuple(dataclasses.replace(one, turns=tuple(map(resampled, one.turns))) for one in group.rollouts)
        )
        for group in groups
    ]


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_the_gradient_of_imitation_is_that_of_the_likelihood(model_folder, temperature):
    folder = model_folder(hidden_size=64, head_dim=32, intermediate_size=96, scale=0.05)
    groups = at_temperature(fakes.make_groups(3), temperature)
    groups[1] = dataclasses.replace(groups[1], rollouts=groups[1].rollouts[2:3])  # what is left of a group that was filtered
    config = fakes.run_config(sampling={"temperature": temperature}, learner={"max_grad_norm": None})
    learner = fakes.make_learner(folder, config, "grpo", master_dtype=torch.float64)
    found, metrics = warm_gradient(learner, groups, IMITATION)
    expected, loss = likelihood_gradient(folder, groups, temperature)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    mine = {name.removeprefix("model."): one for name, one in found.items()}
    assert fakes.distance(mine, {name: expected[name] for name in mine}) < 1e-5


def test_an_off_policy_step_is_the_step_that_an_update_would_take(model_folder):
    folder, groups = model_folder(), fakes.make_groups(5)
    config = fakes.run_config(learner={"lr": 1e-3})
    warm, plain = fakes.make_learner(folder, config), fakes.make_learner(folder, config)
    mine, theirs = warm.warm(groups, None, rate=1e-3, number=0), plain.update(groups)
    assert mine["loss"] == theirs["loss"] != 0
    for (name, one), (_, other) in zip(warm.named_weights(), plain.named_weights(), strict=True):
        assert torch.equal(one, other), name


def test_nothing_that_follows_steps_moves_on(model_folder):
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"reference_sync": {"every": 1}}), ADAPTIVE)
    state = dict(learner.state)
    assert state
    reference = [one.clone() for one in learner.models.reference.parameters()]
    before = learner.fingerprint()
    for number, objective in enumerate((IMITATION, None)):
        metrics = learner.warm(fakes.make_groups(number), objective, rate=1e-3, number=number)
        assert metrics["learner/skipped"] == 0
    assert (learner.step, learner.state) == (0, state)
    assert learner.fingerprint() != before
    assert all(torch.equal(old, new) for old, new in zip(reference, learner.models.reference.parameters(), strict=True))


@pytest.mark.parametrize("objective", ["grpo", {"name": "ppo", "critic": "model"}, {"name": "ppo", "critic": "head"}])
def test_the_first_update_after_it_is_that_of_a_fresh_optimizer(model_folder, tmp_path, objective):
    config = fakes.run_config(learner={"weight_decay": 0.1})
    learner = fakes.make_learner(model_folder(), config, objective)
    for number in range(3):
        learner.warm(fakes.make_groups(number), IMITATION, rate=1e-2, number=number)
    learner.forget_moments()
    fresh = fakes.make_learner(model_folder(), config, objective)
    for (_, mine, _), (_, theirs, _) in zip(fresh.models.saved(), learner.models.saved(), strict=True):
        mine.load_state_dict(theirs.state_dict())
    learner.save(tmp_path)
    for seed in (7, 8):
        assert learner.update(fakes.make_groups(seed))["loss"] == fresh.update(fakes.make_groups(seed))["loss"]
    for (name, one), (_, other) in zip(learner.named_weights(), fresh.named_weights(), strict=True):
        assert torch.equal(one, other), name
    resumed = fakes.make_learner(model_folder(), config, objective)
    resumed.load(tmp_path)
    for seed in (7, 8):
        resumed.update(fakes.make_groups(seed))
    assert resumed.fingerprint() == learner.fingerprint()


def test_imitation_leaves_a_critic_alone(model_folder):
    config = fakes.run_config(learner={"weight_decay": 0.5})
    learner = fakes.make_learner(model_folder(), config, {"name": "ppo", "critic": "model", "critic_warmup_steps": 5})
    before = [one.clone() for one in learner.models.critic.parameters()]
    policy = learner.fingerprint()
    learner.warm(fakes.make_groups(), IMITATION, rate=1e-2, number=0)
    assert all(torch.equal(old, new) for old, new in zip(before, learner.models.critic.parameters(), strict=True))
    assert learner.fingerprint() != policy, "a critic's own warm-up does not hold the policy back here"


def test_weights_that_blow_up_are_told(model_folder):
    learner = fakes.make_learner(model_folder(), fakes.run_config())
    with pytest.raises(LearnerDiverged, match=r"a learning rate of 1e\+38 is too large"):
        learner.warm(fakes.make_groups(), IMITATION, rate=1e38, number=0)
