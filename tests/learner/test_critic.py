from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers
from plain_rows import plain_gradients

from agentrl.errors import LearnerDiverged
from agentrl.learner.packing import pack
from agentrl.learner.samples import candidates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner
    from agentrl.records import Group

KINDS = ["head", "model"]


def ppo(kind: str, **options: Any) -> dict[str, Any]:
    return {"name": "ppo", "critic": kind, "epochs": 1} | options


def learner_of(folder: str, kind: str, *, dtype: torch.dtype = torch.float32, learner: Any = None, **options: Any) -> Learner:
    rest = {name: options.pop(name) for name in ("threads", "spare_threads") if name in options}
    config = fakes.run_config(learner={"max_grad_norm": None} | (learner or {}))
    return fakes.make_learner(folder, config, ppo(kind, **options), master_dtype=dtype, **rest)


def values_of(learner: Learner, group: Group) -> list[torch.Tensor]:
    """The critic's values of each rollout's trained tokens."""
    found = candidates([group], learner.config, learner.models.needs)
    values = learner.models.forward(pack(found.samples, torch.device("cpu"))).values
    assert values is not None
    return list(values.detach().split([sample.num_trained for sample in found.samples]))


def with_token(group: Group, member: int, place: int, token: int) -> Group:
    """The group with another token at one place of one rollout's first turn."""
    rollout = group.rollouts[member]
    span = rollout.turns[0].span
    ids = span.ids.copy()
    ids[place] = token
    turns = (dataclasses.replace(rollout.turns[0], span=dataclasses.replace(span, ids=ids)), *rollout.turns[1:])
    rollouts = list(group.rollouts)
    rollouts[member] = dataclasses.replace(rollout, turns=turns)
    return dataclasses.replace(group, rollouts=tuple(rollouts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_of_the_state_before_its_token(kind: str, model_folder: Callable[..., str]) -> None:
    learner = fakes.shaken(learner_of(model_folder(), kind))
    draw = np.random.default_rng(0)
    rollouts = [fakes.rollout([fakes.turn(fakes.span(draw, 3, 6))], member=member, score=float(member)) for member in range(2)]
    group = dataclasses.replace(fakes.make_groups(0, groups=1)[0], rollouts=tuple(rollouts))
    before = values_of(learner, group)
    assert len(before[1]) == 6
    for place in range(3, 9):  # of the sampled tokens; the values after the changed one differ, its own and earlier ones do not
        token = int(group.rollouts[1].turns[0].span.ids[place])
        after = values_of(learner, with_token(group, 1, place, 3 + (token - 2) % 40))
        same = place - 3 + 1
        torch.testing.assert_close(after[1][:same], before[1][:same])
        assert (after[1][same:] != before[1][same:]).all()
        torch.testing.assert_close(after[0], before[0])


def test_a_fresh_critic_values_everything_at_nothing(model_folder: Callable[..., str]) -> None:
    for kind in KINDS:
        assert all(not values.any() for values in values_of(learner_of(model_folder(), kind), fakes.make_groups(0)[0]))


def test_only_a_head_shares_its_gradient_with_the_policy(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(3)
    for kind in KINDS:
        policy: list[dict[str, torch.Tensor]] = []
        for weight in (0.1, 5.0):
            learner = fakes.shaken(learner_of(model_folder(), kind, value_coef=weight))
            (found,) = fakes.every_gradient(learner, groups)
            policy.append({name: grad for name, grad in found.items() if name.startswith("model.")})
            critic = {name for name in found if not name.startswith("model.")}
            if kind == "head":
                assert critic == {"value_head.weight", "value_head.bias"}
            else:
                assert critic == {f"critic.{name}" for name, _ in learner.models.critic.named_parameters()}
                assert all(bool(grad.any()) for name, grad in found.items() if name in critic)
        same = all(torch.equal(policy[0][name], policy[1][name]) for name in policy[0])
        assert same == (kind == "model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"threads": 2}, {"threads": 1, "spare_threads": 1}], ids=str)
def test_the_gradient_is_that_of_plain_rows_however_it_is_computed(
    kind: str, options: dict[str, Any], model_folder: Callable[..., str]
) -> None:
    folder = model_folder(kind="starcoder2")
    threads = {name: value for name, value in options.items() if name != "gradient_checkpointing"}
    settings = {"tokens_per_micro_batch": 40} | {name: value for name, value in options.items() if name not in threads}
    learner = fakes.shaken(learner_of(folder, kind, dtype=torch.float64, learner=settings, epochs=2, **threads))
    assert (learner._lanes is not None) == bool(threads)
    groups = fakes.with_turn_rewards(fakes.make_groups(4))
    expected = plain_gradients(folder, learner, groups, ppo(kind, epochs=2))
    for found in fakes.every_gradient(learner, groups):
        assert fakes.distance(found, expected) < 1e-12


def test_a_critic_recomputes_its_layers_too(model_folder: Callable[..., str]) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    learner = learner_of(model_folder(), "model", learner={"gradient_checkpointing": True})
    layers = [module for module in learner.models.critic.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers
    assert all(layer.gradient_checkpointing and layer.training for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_is_trained_beside_an_adapter(kind: str, model_folder: Callable[..., str]) -> None:
    """A fresh adapter changes nothing of what is computed, and so nothing of the head's gradient."""
    groups = fakes.make_groups(2)
    adapted = learner_of(model_folder(), kind, learner={"lora": {"rank": 4}})
    (found,) = fakes.every_gradient(adapted, groups)
    (whole,) = fakes.every_gradient(learner_of(model_folder(), kind), groups)
    own = {name for name in found if ".lora_" not in name}
    assert own == {name for name in whole if not name.startswith("model.")}
    assert fakes.distance({name: found[name] for name in own}, {name: whole[name] for name in own}) < 1e-5
    before = {name: one.clone() for name, one in adapted.policy.named_parameters()}
    adapted.update(groups)
    moved = {name for name, one in adapted.policy.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {name for name in found if not name.startswith("critic.") and found[name].any()}
    assert ("value_head.weight" in moved) == (kind == "head")


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}], ids=str)
def test_a_value_head_stays_at_home(options: dict[str, Any], model_folder: Callable[..., str], tmp_path: Path) -> None:
    """It is neither published nor exported, and no part of what a run compares."""
    folder = model_folder()
    learner = learner_of(folder, "head", learner=options | {"lr": 0.05})
    plain = fakes.make_learner(folder, fakes.run_config(learner=options))
    assert [name for name, _ in learner.named_weights()] == [name for name, _ in plain.named_weights()]
    assert [name for name, _ in learner.whole_weights()] == [name for name, _ in plain.whole_weights()]
    learner.update(fakes.make_groups(0))
    mark = learner.fingerprint()
    with torch.no_grad():
        learner.policy.value_head.weight.add_(1.0)
    assert learner.fingerprint() == mark
    if options:
        assert {name for name, _ in learner.adapter_weights()} == {name for name, _ in plain.adapter_weights()}
    learner.export(tmp_path, None)
    loaded, said = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(said.values())
    assert {name for name in loaded.state_dict() if "value" in name} == set()
    weights = dict(learner.whole_weights())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items() if name in weights)


def test_values_that_are_not_finite_stop_the_step_before_it_changes_anything(model_folder: Callable[..., str]) -> None:
    for kind in KINDS:
        learner = learner_of(model_folder(), kind)
        mark = learner.fingerprint()
        head = learner.policy.value_head if kind == "head" else learner.models.critic.head
        with torch.no_grad():
            head.weight.copy_(torch.tensor([3e38, -3e38] * 16))
        with pytest.raises(LearnerDiverged, match="critic's values are infinite or NaN"):
            learner.update(fakes.make_groups(0))
        assert (learner.step, learner.fingerprint()) == (0, mark)


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_learns_what_rollouts_return(kind: str, model_folder: Callable[..., str]) -> None:
    learner = learner_of(model_folder(), kind, learner={"lr": 3e-3}, critic_warmup_steps=100, beta=0.0, clip_value=None)
    groups = fakes.make_groups(1)
    losses = [learner.update(groups)["loss/value_avg"] for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_masked_rollouts_teach_the_critic_nothing(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(5)
    cut = [
        dataclasses.replace(group, rollouts=(dataclasses.replace(group.rollouts[0], ending="truncated"), *group.rollouts[1:]))
        for group in groups
    ]
    learner = fakes.shaken(learner_of(model_folder(), "model", learner={"mask_truncated": True}, whiten=False))
    _, metrics = fakes.gradients(learner, cut)
    trained = sum(one.num_sampled for group in cut for one in group.rollouts[1:])
    assert metrics["mask/truncated"] == len(groups)
    assert metrics["learner/counted_tokens"] == trained == metrics["learner/trained_tokens"]
    (masked,) = fakes.every_gradient(learner, cut)
    without = [dataclasses.replace(group, rollouts=group.rollouts[1:]) for group in groups]
    learner.config = learner.config.model_copy(update={"learner": learner.config.learner.model_copy(update={"mask_truncated": False})})
    (left_out,) = fakes.every_gradient(learner, without)
    assert fakes.distance(masked, left_out) < 1e-5, "unwhitened, no rollout's advantages depend on another's"
