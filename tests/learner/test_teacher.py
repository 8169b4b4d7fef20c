"""Teachers beside the policy: what they say of each token, mixed, by row, and however a step is cut."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers

from agentrl.config import TeacherConfig
from agentrl.errors import ConfigError
from agentrl.examples import Example, Text
from agentrl.records import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agentrl.learner import Learner
    from agentrl.records import Group

BY_STEP = [
    {"name": "opd"},
    {"name": "opd", "estimate": "top_k", "top_k": 4, "mixture": 0.3},
    {"name": "opd", "estimate": "sampled", "reward_coef": 0.5},
    {"name": "minillm"},
    {"name": "iw_opd"},
]


def made(folder: str, objective: dict[str, Any], teachers: Sequence[TeacherConfig] = (), **settings: Any) -> Learner:
    """A learner in float64 whose gradients are not clipped."""
    config = fakes.run_config(learner={"max_grad_norm": None} | settings, teacher=list(teachers))
    return fakes.make_learner(folder, config, objective, master_dtype=torch.float64)


def examples(seed: int = 0, count: int = 6) -> list[Example]:
    """Ragged texts with prompts."""
    draw = np.random.default_rng(seed)
    found = []
    for index in range(count):
        ids = draw.integers(3, fakes.VOCABULARY, int(draw.integers(4, 14))).astype(np.int32)
        trained = np.arange(len(ids)) >= 1 + index % 3
        found.append(Example(where=f"row {index}", texts=(Text(ids=ids, trained=trained),), rewards=(0.0,)))
    return found


def example_gradients(learner: Learner, given: Sequence[Example]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    taken: dict[str, torch.Tensor] = {}

    def read(*_: object) -> None:
        taken.update({name: one.grad.clone() for name, one in learner.policy.named_parameters() if one.grad is not None})

    handle = learner.models.optimizers[0].register_step_pre_hook(read)
    metrics = learner.update_examples(given)
    handle.remove()
    return taken, metrics


def logits_of(folder: str, text: Text) -> torch.Tensor:
    """[trained, vocabulary] by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.from_numpy(text.ids.astype(np.int64))
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0][np.flatnonzero(text.trained) - 1]


def jensen_shannon(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """[tokens] arXiv:2306.13649, eq. 1."""
    mixture = torch.log((1 - beta) * student.exp() + beta * teacher.exp())
    return (beta * teacher.exp() * (teacher - mixture) + (1 - beta) * student.exp() * (student - mixture)).sum(1)


def another(folder: Path, seed: int) -> str:
    return fakes.tiny_model(folder / f"teacher-{seed}", kind="starcoder2", seed=seed, hidden_size=64)


def test_gkd_is_the_divergence_that_transformers_gives(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    learner, given = made(folder, {"name": "gkd", "beta": 0.3, "temperature": 0.7}), examples()

    metrics = learner.evaluate_examples(given)

    per_token = torch.cat(
        [
            jensen_shannon(
                torch.log_softmax(logits_of(folder, one.texts[0]) / 0.7, -1),
                torch.log_softmax(logits_of(fakes.teacher_folder(folder), one.texts[0]) / 0.7, -1),
                0.3,
            )
            for one in given
        ]
    )
    assert metrics["loss"] == pytest.approx(float(per_token.mean()), rel=1e-12)
    assert metrics["loss"] > 0.01


@pytest.mark.parametrize("top_k", [None, 3])
def test_gkd_is_cut_however_it_is(top_k: int | None, model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    whole, metrics = example_gradients(made(folder, {"name": "gkd", "top_k": top_k}), examples())
    for tokens in (1, 30):
        cut, same = example_gradients(made(folder, {"name": "gkd", "top_k": top_k}, tokens_per_micro_batch=tokens), examples()[::-1])
        assert fakes.distance(cut, whole) < 1e-12
        assert same["loss"] == pytest.approx(metrics["loss"], rel=1e-12)
        assert same["learner/micro_batches"] > metrics["learner/micro_batches"]


@pytest.mark.parametrize("objective", BY_STEP, ids=str)
def test_a_step_of_rollouts_is_cut_however_it_is(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    folder, groups = model_folder(kind="starcoder2"), fakes.make_groups(3)
    whole, _ = fakes.gradients(made(folder, objective), groups)
    for tokens in (1, 60):
        cut, _ = fakes.gradients(made(folder, objective, tokens_per_micro_batch=tokens), groups[::-1])
        assert fakes.distance(cut, whole) < 1e-12
    assert max(float(one.abs().max()) for one in whole.values()) > 1e-4


def test_lanes_side_by_side_give_the_same(model_folder: Callable[..., str]) -> None:
    folder, groups = model_folder(kind="starcoder2"), fakes.make_groups(3)
    found = []
    for threads in (1, 2):
        config = fakes.run_config(learner={"max_grad_norm": None, "tokens_per_micro_batch": 20})
        learner = fakes.make_learner(folder, config, "opd", master_dtype=torch.float64, threads=threads)
        found.append(fakes.gradients(learner, groups)[0])
    assert fakes.distance(*found) < 1e-12


def test_several_teachers_are_mixed_by_their_weights(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder, groups = model_folder(kind="starcoder2"), fakes.make_groups(3)
    places = [another(tmp_path, seed) for seed in (1, 2)]
    for objective in BY_STEP[:3]:  # the others are not linear in what the teachers say
        alone = [fakes.gradients(made(folder, objective, [TeacherConfig(model=place)]), groups)[0] for place in places]
        both = [TeacherConfig(name=name, model=place, weight=weight) for name, place, weight in zip("ab", places, (1.0, 3.0), strict=True)]
        mixed, _ = fakes.gradients(made(folder, objective, both), groups)
        expected = {name: 0.25 * alone[0][name] + 0.75 * alone[1][name] for name in mixed}
        assert fakes.distance(mixed, expected) < 1e-11


def test_a_row_that_names_a_teacher_learns_from_that_one(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder, given = model_folder(kind="starcoder2"), examples()
    teachers = [TeacherConfig(name=name, model=another(tmp_path, seed), weight=2.0) for name, seed in (("math", 1), ("code", 2))]
    named = [dataclasses.replace(one, teacher=("math", "code", None)[index % 3]) for index, one in enumerate(given)]
    counts = [sum(text.num_trained for one in given[start::3] for text in one.texts) for start in range(3)]
    parts = [
        example_gradients(made(folder, {"name": "gkd"}, [teachers[0]]), given[0::3])[0],
        example_gradients(made(folder, {"name": "gkd"}, [teachers[1]]), given[1::3])[0],
        example_gradients(made(folder, {"name": "gkd"}, teachers), given[2::3])[0],
    ]
    expected = {name: sum(count * part[name] for count, part in zip(counts, parts, strict=True)) / sum(counts) for name in parts[0]}

    for tokens in (16384, 1):
        found, _ = example_gradients(made(folder, {"name": "gkd"}, teachers, tokens_per_micro_batch=tokens), named)
        assert fakes.distance(found, expected) < 1e-12


def with_row(groups: Sequence[Group], row: dict[str, Any]) -> list[Group]:
    task = Task(id="t", environment="e", row=row)
    return [
        dataclasses.replace(group, task=task, rollouts=tuple(dataclasses.replace(one, task=task) for one in group.rollouts))
        for group in groups
    ]


def test_a_rollout_whose_row_names_a_teacher_learns_from_that_one(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder, groups = model_folder(kind="starcoder2"), fakes.make_groups(3)
    teachers = [TeacherConfig(name=name, model=another(tmp_path, seed)) for name, seed in (("math", 1), ("code", 2))]
    for objective in BY_STEP:
        alone, _ = fakes.gradients(made(folder, objective, [teachers[1]]), groups)
        named, _ = fakes.gradients(made(folder, objective, teachers), with_row(groups, {"teacher": "code"}))
        assert fakes.distance(named, alone) < 1e-12
    with pytest.raises(ConfigError, match=r"task t: field `teacher` got 'cod'; .*: math, code"):
        made(folder, {"name": "opd"}, teachers).update(with_row(groups, {"teacher": "cod"}))


def test_a_teacher_of_its_own_temperature(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder, given, place = model_folder(kind="starcoder2"), examples(), another(tmp_path, 1)
    learner = made(folder, {"name": "gkd", "temperature": 1.0, "beta": 0.5}, [TeacherConfig(model=place, temperature=0.5)])

    per_token = torch.cat(
        [
            jensen_shannon(
                torch.log_softmax(logits_of(folder, one.texts[0]), -1), torch.log_softmax(logits_of(place, one.texts[0]) / 0.5, -1), 0.5
            )
            for one in given
        ]
    )
    assert learner.evaluate_examples(given)["loss"] == pytest.approx(float(per_token.mean()), rel=1e-12)


def test_a_padded_head_of_the_teacher_is_cut_to_the_policys(model_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = model_folder(kind="starcoder2")
    padded = fakes.tiny_model(tmp_path / "padded", kind="starcoder2", seed=1, vocab_size=fakes.VOCABULARY + 16)

    metrics = made(folder, {"name": "gkd"}, [TeacherConfig(model=padded)]).evaluate_examples(examples())

    assert np.isfinite(metrics["loss"])


def test_a_head_of_other_words_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    other = fakes.tiny_model(tmp_path / "other", kind="starcoder2", vocab_size=5000)
    with pytest.raises(ConfigError, match=r"a head of 5000 words and the policy one of 48.*gold"):
        made(model_folder(kind="starcoder2"), {"name": "gkd"}, [TeacherConfig(model=other)])


def test_nothing_trains_the_teacher(model_folder: Callable[..., str]) -> None:
    learner = made(model_folder(kind="starcoder2"), {"name": "gkd"}, lr=1e-2)
    assert learner.models.teachers is not None
    teacher = learner.models.teachers.loaded[0].policy
    before = [one.clone() for one in teacher.parameters()]

    learner.update_examples(examples())

    assert all(torch.equal(one, other) for one, other in zip(before, teacher.parameters(), strict=True))
    assert all(one.grad is None for one in teacher.parameters())


def test_a_step_of_both_counts_each_token_alike(model_folder: Callable[..., str]) -> None:
    folder, groups, given = model_folder(kind="starcoder2"), fakes.make_groups(3), examples()
    objective = {"name": "gkd", "lmbda": 0.5}
    own, of_own = fakes.gradients(made(folder, objective), groups)
    others, of_others = example_gradients(made(folder, objective), given)
    counts = [one["learner/counted_tokens"] for one in (of_own, of_others)]
    expected = {name: (counts[0] * own[name] + counts[1] * others[name]) / sum(counts) for name in own}

    for tokens in (16384, 1):
        learner = made(folder, objective, tokens_per_micro_batch=tokens)
        learner.further = lambda step: given if step == 0 else []
        both, metrics = fakes.gradients(learner, groups)
        assert fakes.distance(both, expected) < 1e-12
        assert metrics["learner/counted_tokens"] == sum(counts)
        assert metrics["data/rows"] == len(given)
        assert metrics["sampling/ess"] > 0  # of what was sampled alone


def test_a_warm_start_asks_no_teacher(model_folder: Callable[..., str]) -> None:
    from agentrl.objectives.sft import IMITATION

    learner = made(model_folder(kind="starcoder2"), {"name": "opd"})
    metrics = learner.warm(fakes.make_groups(3), IMITATION, rate=1e-3, number=0)
    assert "time/teacher_s" not in metrics
    assert "time/teacher_s" in learner.update(fakes.make_groups(3))


@pytest.mark.parametrize("lr", [3e-3, 0.0])
def test_distilling_lowers_the_divergence_of_texts_that_were_not_trained(lr: float, model_folder: Callable[..., str]) -> None:
    learner = made(model_folder(kind="starcoder2"), {"name": "gkd", "beta": 0.0, "temperature": 1.0}, lr=lr)
    held_out = examples(seed=99, count=24)
    before = learner.evaluate_examples(held_out)["loss"]
    for step in range(40):
        learner.update_examples(examples(seed=step, count=16))
    after = learner.evaluate_examples(held_out)["loss"]

    if lr == 0.0:
        assert after == before
    else:
        assert after < 0.7 * before
