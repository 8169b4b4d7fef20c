"""A policy that is its own teacher, on the real learner: against TRL's losses, however a step is cut, and as its weights move."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from agentrl.learner.model import output_layer
from agentrl.learner.samples import viewed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.learner import Learner
    from agentrl.learner.samples import Sample
    from agentrl.records import Group


ESTIMATES = {
    "full": {"estimate": "full", "alpha": 0.3},
    "top_k": {"estimate": "top_k", "top_k": 7, "alpha": 0.5},
    "top_k with the rest": {"estimate": "top_k", "top_k": 7, "tail": True, "alpha": 1.0},
    "sampled": {"estimate": "sampled", "alpha": 1.0},
}


def taught(groups: list[Group], *, all_of_them: bool = True) -> list[Group]:
    """The same groups, their rollouts with prompts for a teacher; or every second one alone."""
    draw = np.random.default_rng(5)
    found = []
    for group in groups:
        rollouts = []
        for one in group.rollouts:
            prompt = draw.integers(3, fakes.VOCABULARY, 4 + one.member).astype(np.int32)
            shown = all_of_them or one.member % 2 == 0
            said = ({"role": "assistant", "content": "a text of some length" if one.member else " x "},)
            rollouts.append(dataclasses.replace(one, teacher_prompt=prompt if shown else None, messages=said))
        found.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    return found


def learner_of(folder: str, objective: dict[str, Any], **options: Any) -> Learner:
    return fakes.make_learner(folder, fakes.run_config(**options), objective, master_dtype=torch.float64)


def samples_of(learner: Learner, groups: list[Group]) -> tuple[Sample, ...]:
    from agentrl.learner.samples import candidates

    return candidates(groups, learner.config, learner.models.needs).samples


def logits_of(learner: Learner, sample: Sample, *, temperature: float = 1.0) -> torch.Tensor:
    """[trained, vocabulary] by transformers' own forward pass, row by row."""
    base = learner.policy.base
    found = []
    for row, places in zip(sample.rows, sample.sources, strict=True):
        hidden = base.get_decoder()(input_ids=torch.from_numpy(row.astype(np.int64))[None], use_cache=False).last_hidden_state[0]
        found.append(output_layer(base)(hidden)[torch.from_numpy(places)])
    return torch.cat(found) / temperature


def trl_loss(
    learner: Learner, groups: list[Group], options: dict[str, Any], *, teacher: Learner | None = None, skip: int = 0
) -> torch.Tensor:
    """The same step by TRL's functions on whole logits."""
    loss_utils = pytest.importorskip("trl.experimental.sdft.loss_utils")
    teacher = teacher or learner
    rows = []
    base = learner.policy.base
    kept = base.config._attn_implementation
    base.set_attn_implementation("eager")
    teacher.policy.base.set_attn_implementation("eager")
    for sample in samples_of(learner, groups):
        student = logits_of(learner, sample)
        with torch.no_grad():
            other = logits_of(teacher, viewed(sample))
        targets = torch.from_numpy(sample.targets)
        if options["estimate"] == "full":
            losses = loss_utils.compute_full_logit_self_distillation_loss(student, other, distillation_alpha=options["alpha"])
        elif options["estimate"] == "top_k":
            losses = loss_utils.compute_topk_self_distillation_loss(
                student,
                other,
                distillation_topk=options["top_k"],
                distillation_alpha=options["alpha"],
                distillation_add_tail=options.get("tail", False),
            )
        else:
            losses = loss_utils.compute_sampled_token_self_distillation_loss(
                student[None], other[None], targets[None], distillation_alpha=1.0
            )[0]
        chosen = torch.log_softmax(student, -1).gather(1, targets[:, None])[:, 0]
        losses = loss_utils.apply_importance_sampling_clipping(losses, chosen, torch.from_numpy(sample.sampler_logprobs).double(), 2.0)
        mask = torch.full((len(targets),), float(sample.view is not None), dtype=torch.float64)
        mask[:skip] = 0.0
        rows.append((losses * mask).sum() / mask.sum().clamp(min=1.0))
    base.set_attn_implementation(kept)
    teacher.policy.base.set_attn_implementation(kept)
    return torch.stack(rows).mean()


def expected_gradient(loss: torch.Tensor, learner: Learner) -> dict[str, torch.Tensor]:
    named = dict(learner.policy.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("name", ESTIMATES)
def test_value_and_gradient_of_sdft_are_trls(name: str, model_folder: Callable[..., str]) -> None:
    options = ESTIMATES[name]
    learner = fakes.shaken(learner_of(model_folder(), {"name": "sdft", "teacher": "live", "skip_tokens": 2, **options}))
    groups = taught(fakes.make_groups(1))
    loss = trl_loss(learner, groups, options, skip=2)
    expected = expected_gradient(loss, learner)
    found, metrics = fakes.gradient_at_rest(learner, groups, max_grad_norm=None)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert fakes.distance(found, expected) < 1e-6


@pytest.mark.parametrize("name", ["top_k", "sampled"])
def test_value_and_gradient_of_sdpos_distillation_are_trls(name: str, model_folder: Callable[..., str]) -> None:
    """Rollouts whose teacher has nothing to see count in the mean, with 0."""
    options = ESTIMATES[name]
    learner = fakes.shaken(learner_of(model_folder(), {"name": "sdpo", "teacher": "live", **options}))
    groups = taught(fakes.make_groups(2), all_of_them=False)
    loss = trl_loss(learner, groups, options)
    found, metrics = fakes.gradient_at_rest(learner, groups, max_grad_norm=None)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert fakes.distance(found, expected_gradient(loss, learner)) < 1e-6
    assert 0 < metrics["self_distillation/reprompt_sample_fraction"] < 1


def test_sdpo_is_a_mixture_of_grpo_and_distillation(model_folder: Callable[..., str]) -> None:
    groups = taught(fakes.make_groups(3), all_of_them=False)
    found = {}
    for weight in (0.0, 0.25, 1.0):
        learner = fakes.shaken(learner_of(model_folder(), {"name": "sdpo", "teacher": "live", "weight": weight, "is_clip": None}))
        found[weight], metrics = fakes.gradient_at_rest(learner, groups, max_grad_norm=None)
        if weight == 0.25:
            assert metrics["loss"] == pytest.approx(metrics["policy_loss"] + metrics["loss/distillation"])
    mixed = {name: 0.75 * found[0.0][name] + 0.25 * found[1.0][name] for name in found[0.0]}
    assert fakes.distance(found[0.25], mixed) < 1e-9
    plain = fakes.shaken(learner_of(model_folder(), {"name": "grpo"}))
    assert fakes.distance(found[0.0], fakes.gradient_at_rest(plain, groups, max_grad_norm=None)[0]) < 1e-9


@pytest.mark.parametrize(
    "objective", [{"name": "sdft", **ESTIMATES["top_k"]}, {"name": "sdpo", "weight": 0.5, "teacher": "base", **ESTIMATES["sampled"]}]
)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner = fakes.shaken(learner_of(model_folder(), objective))
    groups = taught(fakes.make_groups(4), all_of_them=False)
    whole, _ = fakes.gradient_at_rest(learner, groups, max_grad_norm=None)
    small, metrics = fakes.gradient_at_rest(learner, groups, max_grad_norm=None, tokens_per_micro_batch=30)
    assert metrics["learner/micro_batches"] > 3
    assert fakes.distance(small, whole) < 1e-9
    turned = [dataclasses.replace(group, rollouts=group.rollouts[::-1]) for group in groups[::-1]]
    assert fakes.distance(fakes.gradient_at_rest(learner, turned, max_grad_norm=None)[0], whole) < 1e-9


def test_a_base_teacher_stays_as_the_run_began(model_folder: Callable[..., str]) -> None:
    options = ESTIMATES["full"]
    learner = learner_of(model_folder(), {"name": "sdft", "teacher": "base", **options})
    start = learner_of(model_folder(), {"name": "grpo"})
    fakes.shaken(learner)
    groups = taught(fakes.make_groups(1))
    loss = trl_loss(learner, groups, options, teacher=start)
    assert fakes.gradient_at_rest(learner, groups)[1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_running_mean_follows_the_policy_and_is_kept_in_checkpoints(lora: Any, model_folder: Callable[..., str], tmp_path: Path) -> None:
    objective = {"name": "sdft", "teacher": "ema", "ema_rate": 0.25, "ema_every": 2, **ESTIMATES["full"]}
    options = {"learner": {"lr": 0.01, "lora": lora}}
    learner = learner_of(model_folder(), objective, **options)
    teacher = learner.models.teachers.follower.model  # type: ignore[union-attr]
    name = next(name for name, one in learner.policy.named_parameters() if one.requires_grad and "norm" not in name)
    start = dict(teacher.named_parameters())[name].clone()
    groups = taught(fakes.make_groups(1))
    learner.update(groups)
    torch.testing.assert_close(dict(teacher.named_parameters())[name], start, rtol=0, atol=0)
    learner.update(groups)
    own = dict(learner.policy.named_parameters())[name]
    torch.testing.assert_close(dict(teacher.named_parameters())[name], 0.75 * start + 0.25 * own.detach())
    assert not any(one.requires_grad for one in teacher.parameters())
    learner.save(tmp_path)
    after = learner.update(groups)
    resumed = learner_of(model_folder(), objective, **options)
    resumed.load(tmp_path)
    assert resumed.update(groups)["loss"] == after["loss"]
    assert resumed.fingerprint() == learner.fingerprint()


def test_a_teacher_gets_no_gradient_and_learning_from_oneself_untold_is_no_learning(model_folder: Callable[..., str]) -> None:
    learner = fakes.shaken(learner_of(model_folder(), {"name": "sdft", "teacher": "live", **ESTIMATES["full"]}))
    groups = fakes.make_groups(1)
    told = [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(one, teacher_prompt=one.turns[0].span.ids[: int(one.turns[0].span.sampled.argmax())])
                for one in group.rollouts
            ),
        )
        for group in groups
    ]
    found, metrics = fakes.gradient_at_rest(learner, told, max_grad_norm=None)
    assert metrics["loss"] == pytest.approx(0, abs=1e-12)
    assert max(float(one.abs().max()) for one in found.values()) < 1e-9


def test_ssd_learns_all_but_stubs_at_temperature_1(model_folder: Callable[..., str]) -> None:
    groups = taught(fakes.make_groups(1))
    hot = [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(
                    one,
                    turns=tuple(
                        dataclasses.replace(each, contract=dataclasses.replace(each.contract, temperature=1.5)) for each in one.turns
                    ),
                )
                for one in group.rollouts
            ),
        )
        for group in groups
    ]
    learner = fakes.shaken(learner_of(model_folder(), {"name": "ssd"}, sampling={"temperature": 1.5}))
    samples = [
        one
        for one, rollout in zip(samples_of(learner, hot), [one for group in hot for one in group.rollouts], strict=True)
        if rollout.member
    ]
    learner.policy.base.set_attn_implementation("eager")
    logps = [torch.log_softmax(logits_of(learner, one), -1).gather(1, torch.from_numpy(one.targets)[:, None]) for one in samples]
    expected = -torch.cat(logps).mean()
    gradient = expected_gradient(expected, learner)
    from agentrl.learner.attention import ATTENTION

    learner.policy.base.set_attn_implementation(ATTENTION)
    found, metrics = fakes.gradient_at_rest(learner, hot, max_grad_norm=None)
    assert metrics["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert metrics["mask/left_out"] == len(hot), "the first of each group says too little"
    assert metrics["ssd/cross_entropy_loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert fakes.distance(found, gradient) < 1e-6
    kept = fakes.shaken(learner_of(model_folder(), {"name": "ssd", "filter_empty": False}, sampling={"temperature": 1.5}))
    assert fakes.gradient_at_rest(kept, hot)[1]["learner/rollouts"] > metrics["learner/rollouts"]
