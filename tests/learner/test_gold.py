"""A teacher of another vocabulary, on the real learner: against TRL's loss, hand-made arithmetic, and however a step is cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from tokenizer_fakes import OTHER, OWN, TEXTS, foreign_pair
from tokenizer_fakes import foreign_examples as examples
from trl_import import trl_module

from agentrl.config import TeacherConfig
from agentrl.errors import ConfigError
from agentrl.learner.attention import ATTENTION
from agentrl.learner.model import output_layer
from agentrl.learner.samples import viewed
from agentrl.objectives import validate
from agentrl.records import Group, Source, TokenSpan, Version, VersionRun

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.examples import Example
    from agentrl.learner import Learner


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of a student and a teacher, each with its tokenizer."""
    return foreign_pair(str(tmp_path_factory.mktemp("models")))


def learner_of(folders: tuple[str, str], **options: Any) -> Learner:
    config = fakes.run_config(learner={"max_grad_norm": None, "lr": 0.0}, teacher=[TeacherConfig(model=folders[1])])
    return fakes.make_learner(folders[0], config, {"name": "gold", **options}, master_dtype=torch.float64)


def gradients(learner: Learner, given: list[Example], **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    taken: dict[str, torch.Tensor] = {}

    def read(*_: object) -> None:
        taken.update({name: one.grad.clone() for name, one in learner.policy.named_parameters() if one.grad is not None})

    config = learner.config
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update=settings)})
    handle = learner.models.optimizers[0].register_step_pre_hook(read)
    metrics = learner.update_examples(given)
    handle.remove()
    learner.config = config
    return taken, metrics


def trl_loss(learner: Learner, given: list[Example], options: dict[str, Any]) -> torch.Tensor:
    """TRL's loss on the same ids of both sides, text by text.

    Its `bayesian` reads each distribution where it predicts the token; its `observed` one place later, so that strategy is compared in
    tests/learner/test_uld.py alone, on rows that are moved.
    """
    gold = trl_module("trl.experimental.gold.gold_trainer")
    from agentrl.learner.examples import candidates_of
    from agentrl.learner.foreign import ForeignTeacher

    config = SimpleNamespace(
        uld_crossentropy_weight=options.get("crossentropy_weight", 0.0),
        uld_distillation_weight=1.0,
        uld_student_temperature=options.get("student_temperature", 1.0),
        uld_teacher_temperature=options.get("teacher_temperature", 1.0),
        uld_skip_student_eos=True,
        uld_skip_teacher_eos=True,
        use_extended_uld=True,
        uld_token_merge_strategy="bayesian",
        uld_use_hybrid_loss=options.get("hybrid", False),
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=options.get("beta", 0.5),
    )
    loss = gold.ULDLoss(config, student_tokenizer=OWN, teacher_tokenizer=OTHER)
    foreign = learner.models.teachers.foreign  # type: ignore[union-attr]
    assert isinstance(foreign, ForeignTeacher)
    found = foreign.aligned(candidates_of(given, learner.models.needs))
    teacher = learner.models.teachers.loaded[0].policy  # type: ignore[union-attr]
    totals = []
    for sample in found.samples:
        inputs = []
        for policy, tokenizer, one in ((learner.policy, OWN, sample), (teacher, OTHER, viewed(sample))):
            policy.base.set_attn_implementation("eager")
            ids = torch.from_numpy(np.append(one.rows[0], one.targets[-1]).astype(np.int64))
            hidden = policy.base.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state
            logits = output_layer(policy.base)(hidden)
            policy.base.set_attn_implementation(ATTENTION)
            places = torch.from_numpy(one.sources[0]) + 1
            labels = torch.full_like(ids, -100)
            labels[places] = ids[places]
            ends, offsets = 0, torch.zeros(len(ids), 2, dtype=torch.long)
            for place in places.tolist():
                token = tokenizer.convert_ids_to_tokens(int(ids[place]))
                size = 0 if int(ids[place]) == tokenizer.eos_token_id else len(token)
                offsets[place] = torch.tensor([ends, ends + size])
                ends += size
            inputs.append((logits, labels[None], ids[None], offsets[None]))
        (a, b, c, d), (e, f, g, h) = inputs
        totals.append(loss(a, e.detach(), b, f, c, g, d, h))
    return torch.stack(totals).mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hybrid": True, "beta": 0.3},
        {"crossentropy_weight": 0.4, "student_temperature": 1.3, "teacher_temperature": 0.8},
    ],
)
def test_value_and_gradient_are_trls(options: dict[str, Any], folders: tuple[str, str]) -> None:
    learner = fakes.shaken(learner_of(folders, merge="bayesian", **options))
    given = examples()
    loss = trl_loss(learner, given, options)
    named = dict(learner.policy.named_parameters())
    expected = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    found, metrics = gradients(learner, given)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert fakes.distance(found, expected) < 1e-6


@pytest.mark.parametrize("options", [{}, {"hybrid": True, "merge": "bayesian", "crossentropy_weight": 0.5}])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(options: dict[str, Any], folders: tuple[str, str]) -> None:
    learner = fakes.shaken(learner_of(folders, **options))
    given = examples()
    whole, metrics = gradients(learner, given)
    small, cut = gradients(learner, given[::-1], tokens_per_micro_batch=8)
    assert cut["learner/micro_batches"] > metrics["learner/micro_batches"]
    assert cut["loss"] == pytest.approx(metrics["loss"], rel=1e-12)
    assert fakes.distance(small, whole) < 1e-9


def test_a_text_of_whole_words_is_aligned_and_end_tokens_are_not(folders: tuple[str, str]) -> None:
    learner = learner_of(folders)
    ids = sum(text.num_trained for one in examples() for text in one.texts)
    assert learner.update_examples(examples(ends=False))["gold/aligned_share"] == 1
    assert learner.update_examples(examples())["gold/aligned_share"] == pytest.approx((ids - len(TEXTS)) / ids)


def test_learning_lowers_the_distance(folders: tuple[str, str]) -> None:
    config = fakes.run_config(learner={"lr": 3e-3}, teacher=[TeacherConfig(model=folders[1])])
    learner = fakes.make_learner(folders[0], config, {"name": "gold"})
    losses = [learner.update_examples(examples())["loss"] for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    still = learner_of(folders)
    assert still.update_examples(examples())["loss"] == still.update_examples(examples())["loss"]


def test_a_teacher_without_a_tokenizer_is_refused_by_name(folders: tuple[str, str], tmp_path: Path) -> None:
    bare = fakes.tiny_model(tmp_path, vocab_size=60)
    with pytest.raises(ConfigError, match="tokenizer of the teacher"):
        learner_of((folders[0], bare))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"matched_weight": 0.5}, "go together"),
        ({"beta": 0.1}, "are of the hybrid form"),
        ({"distillation_weight": 0.0}, "nothing would be learned"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate({"name": "gold", **options})


def test_its_own_samples_are_learned_as_texts_of_a_dataset_are(folders: tuple[str, str]) -> None:
    learner = fakes.shaken(learner_of(folders, lmbda=1.0, merge="bayesian"))
    given = examples()
    expected, figures = gradients(fakes.shaken(learner_of(folders, merge="bayesian")), given)
    groups = []
    for index, example in enumerate(given):
        (text,) = example.texts
        count = text.num_trained
        span = TokenSpan(
            ids=text.ids,
            source=np.where(text.trained, Source.SAMPLED, Source.PROMPT),
            logprobs=np.where(text.trained, -1.0, np.nan),
            versions=(VersionRun(version=Version(), start=len(text.ids) - count, end=len(text.ids)),),
        )
        own = fakes.rollout([fakes.turn(span)], member=0, score=0.0)
        groups.append(Group(index=index, task=own.task, rollouts=(own,), dispatched=Version()))
    found, metrics = fakes.gradients(learner, groups)
    assert metrics["loss"] == pytest.approx(figures["loss"], rel=1e-9)
    assert fakes.distance(found, expected) < 1e-9
