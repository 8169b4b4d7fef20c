"""Policies whose head judges texts: what they compute, how they are saved, and that no cut of a step changes what is learned."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import dataset_rows as rows
import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.examples import Example
    from agentrl.learner import Learner

KINDS: dict[str, Any] = {
    "reward_model": ("preference", transformers.AutoModelForSequenceClassification),
    "process_reward_model": ("stepwise", transformers.AutoModelForTokenClassification),
}


def gradient(learner: Learner, examples: list[Example], **settings: object) -> dict[str, torch.Tensor]:
    taken: dict[str, torch.Tensor] = {}

    def read(optimizer: torch.optim.Optimizer, *_: object) -> None:
        taken.update({name: one.grad.detach().clone() for name, one in learner.policy.named_parameters() if one.grad is not None})

    handle = learner.models.optimizers[0].register_step_pre_hook(read)
    config = learner.config
    options = {"lr": 0.0, "max_grad_norm": None} | settings
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update=options)})
    learner.update_examples(examples)
    learner.config = config
    handle.remove()
    return taken


def padded(arrays: list[np.ndarray], fill: int) -> torch.Tensor:
    width = max(map(len, arrays))
    return torch.from_numpy(np.stack([np.pad(one, (0, width - len(one)), constant_values=fill) for one in arrays]).astype(np.int64))


def plain_loss(model: Any, name: str, examples: list[Example]) -> torch.Tensor:
    """The loss of a step by transformers' own forward passes over padded rows."""
    texts = [text for example in examples for text in example.texts]
    ids = padded([text.ids for text in texts], 0)
    logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    if name == "reward_model":
        scores = logits[:, 0]
        margins = torch.tensor([example.parts.get("margin", 0.0) for example in examples], dtype=scores.dtype)
        return -torch.nn.functional.logsigmoid(scores[0::2] - scores[1::2] - margins).mean()
    labels = torch.from_numpy(np.concatenate([text.labels[~np.isnan(text.labels)] for text in texts])).long()
    places = [(row, place) for row, text in enumerate(texts) for place in np.flatnonzero(~np.isnan(text.labels))]
    at = torch.stack([logits[row, place] for row, place in places])
    return torch.nn.functional.cross_entropy(at, labels)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
def test_loss_and_gradient_are_those_of_transformers_own_model(
    name: str, kind: str, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    data, loader = KINDS[name]
    examples = rows.make_examples(data)
    learner = fakes.make_learner(model_folder(kind=kind), fakes.run_config(), name, master_dtype=torch.float64)
    learner.export(tmp_path, None)
    model = loader.from_pretrained(tmp_path, dtype=torch.float64).eval()
    loss = plain_loss(model, name, examples)
    loss.backward()
    mine = gradient(learner, examples)
    theirs = {f"model.{one}": parameter.grad for one, parameter in model.named_parameters() if parameter.grad is not None}
    assert fakes.distance(mine, theirs) < 1e-5  # norms compute in float32
    assert learner.evaluate_examples(examples)["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(name: str, model_folder: Callable[..., str]) -> None:
    examples = rows.make_examples(KINDS[name][0])
    learner = fakes.make_learner(model_folder(kind="starcoder2"), fakes.run_config(), name, master_dtype=torch.float64)
    whole = gradient(learner, examples)
    for other in (
        gradient(learner, examples, tokens_per_micro_batch=1),
        gradient(learner, examples, tokens_per_micro_batch=30),
        gradient(learner, examples[::-1], tokens_per_micro_batch=30),
    ):
        assert fakes.distance(other, whole) < 1e-12


def test_a_common_prompt_is_computed_once(model_folder: Callable[..., str]) -> None:
    draw = np.random.default_rng(0)
    prompt = draw.integers(3, fakes.VOCABULARY, 20)
    texts = (rows.completed(draw, prompt, 3), rows.completed(draw, prompt, 3))
    example = dataclasses.replace(rows.make_examples("preference")[0], texts=texts)
    learner = fakes.make_learner(model_folder(), fakes.run_config(), "reward_model")
    metrics = learner.update_examples([example])
    assert metrics["learner/tokens"] - metrics["learner/computed_tokens"] >= 20
    assert metrics["num_tokens"] == sum(len(text.ids) for text in texts)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 4}}, {"gradient_checkpointing": True}])
def test_it_learns_and_is_saved_as_transformers_loads_it(
    name: str, settings: dict[str, Any], model_folder: Callable[..., str], tmp_path: Path
) -> None:
    data, loader = KINDS[name]
    examples = rows.make_examples(data)
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner=settings | {"lr": 3e-3}), name)
    first = learner.update_examples(examples)
    for _ in range(25):
        learner.update_examples(examples)
    after = learner.evaluate_examples(examples)
    assert after["loss"] < first["loss"] / 3
    assert after["accuracy"] == 1
    learner.export(tmp_path, None)
    model, loading = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        assert float(plain_loss(model.eval(), name, examples)) == pytest.approx(after["loss"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # between peft and transformers
def test_the_adapter_is_saved_with_its_head_and_peft_loads_it(model_folder: Callable[..., str], tmp_path: Path) -> None:
    import peft

    examples = rows.make_examples("preference")
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lora": {"rank": 4}, "lr": 3e-3}), "reward_model")
    for _ in range(5):
        learner.update_examples(examples)
    learner.export(tmp_path, None)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=1, pad_token_id=0)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert float(plain_loss(model, "reward_model", examples)) == pytest.approx(learner.evaluate_examples(examples)["loss"], rel=1e-4)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_checkpoint_goes_on_bit_for_bit(lora: dict[str, Any] | None, model_folder: Callable[..., str], tmp_path: Path) -> None:
    examples, config = rows.make_examples("preference"), fakes.run_config(learner={"lora": lora})
    learner = fakes.make_learner(model_folder(), config, "reward_model")
    learner.update_examples(examples)
    learner.save(tmp_path)
    learner.update_examples(examples)
    other = fakes.make_learner(model_folder(), config, "reward_model")
    other.load(tmp_path)
    other.update_examples(examples)
    assert other.fingerprint() == learner.fingerprint()


def test_a_new_head_is_drawn_from_the_seed(model_folder: Callable[..., str]) -> None:
    def head(seed: int) -> torch.Tensor:
        learner = fakes.make_learner(model_folder(), fakes.run_config(seed=seed), "reward_model")
        return dict(learner.policy.base.named_parameters())["score.weight"].detach()

    before = torch.random.get_rng_state()
    first = head(1)
    assert torch.equal(first, head(1))
    assert not torch.equal(first, head(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert 0.05 < float(first.std()) < 0.3  # the model's own deviation is 0.15


def test_training_goes_on_from_a_classifier(model_folder: Callable[..., str], tmp_path: Path) -> None:
    examples = rows.make_examples("preference")
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 3e-3}), "reward_model")
    for _ in range(5):
        learner.update_examples(examples)
    learner.export(tmp_path, None)
    again = fakes.make_learner(str(tmp_path), fakes.run_config(), "reward_model")
    assert again.evaluate_examples(examples)["loss"] == pytest.approx(learner.evaluate_examples(examples)["loss"], rel=1e-6)
    with pytest.raises(ConfigError, match=r"is a Qwen3ForSequenceClassification, and this objective trains a \.\.\.ForTokenClassification"):
        fakes.make_learner(str(tmp_path), fakes.run_config(), "process_reward_model")


def test_a_classifier_with_other_labels_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    three = transformers.AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=3)
    three.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a classifier with 3 labels, and this objective trains one with 1"):
        fakes.make_learner(str(tmp_path), fakes.run_config(), "reward_model")


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no configuration that transformers reads"):
        fakes.make_learner(str(tmp_path), fakes.run_config(), "reward_model")


@pytest.mark.parametrize("padding", [2, None])
def test_a_text_that_ends_with_the_padding_token_has_the_score_that_transformers_gives(
    padding: int | None, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    folder = model_folder(pad_token_id=padding)  # None: the end of a text, 2, takes its place
    draw = np.random.default_rng(3)
    examples = []
    for example in rows.make_examples("preference"):
        texts = [rows.text(np.concatenate([one.ids, [2] * int(draw.integers(0, 3))]), one.prompt_length) for one in example.texts]
        examples.append(dataclasses.replace(example, texts=tuple(texts), parts={}))
    learner = fakes.make_learner(folder, fakes.run_config(), "reward_model")
    learner.export(tmp_path, None)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert model.config.pad_token_id == 2
    with torch.no_grad():
        scores = model(input_ids=padded([text.ids for example in examples for text in example.texts], 2)).logits[:, 0]
    expected = -torch.nn.functional.logsigmoid(scores[0::2] - scores[1::2]).mean()
    assert learner.evaluate_examples(examples)["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_smallest_and_largest_score_are_those_of_the_step(model_folder: Callable[..., str]) -> None:
    examples = rows.make_examples("preference")
    learner = fakes.make_learner(model_folder(), fakes.run_config(), "reward_model")
    alone = [learner.evaluate_examples([one]) for one in examples]
    config = learner.config
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update={"tokens_per_micro_batch": 1})})
    whole = learner.evaluate_examples(examples)
    assert whole["learner/micro_batches"] == len(examples)
    assert whole["min_reward"] == pytest.approx(min(one["min_reward"] for one in alone), abs=1e-5)
    assert whole["max_reward"] == pytest.approx(max(one["max_reward"] for one in alone), abs=1e-5)
    for name in ("mean_reward", "margin", "accuracy"):
        assert whole[name] == pytest.approx(np.mean([one[name] for one in alone]), abs=1e-5)
    assert "entropy" not in whole
    assert all(np.isfinite(value) for value in whole.values())


def test_a_row_without_its_pair_is_left_out_and_counted(model_folder: Callable[..., str]) -> None:
    examples = rows.make_examples("preference")
    nothing = rows.text(np.zeros(3), 1)  # all padding
    learner = fakes.make_learner(model_folder(), fakes.run_config(), "reward_model")
    broken = dataclasses.replace(examples[0], texts=(examples[0].texts[0], nothing))
    metrics = learner.update_examples([broken, *examples[1:]])
    assert (metrics["learner/pairs"], metrics["learner/unpaired"]) == (len(examples) - 1, 1)


def test_the_last_step_alone_can_be_learned(model_folder: Callable[..., str]) -> None:
    examples = rows.make_examples("stepwise")
    learner = fakes.make_learner(model_folder(), fakes.run_config(), {"name": "process_reward_model", "last_step_only": True})
    assert learner.evaluate_examples(examples)["learner/counted_tokens"] == len(examples)
    cut = []
    for example in examples:
        labels = example.texts[0].labels.copy()
        labels[:-1] = np.nan
        cut.append(dataclasses.replace(example, texts=(dataclasses.replace(example.texts[0], labels=labels),)))
    assert learner.evaluate_examples(examples)["loss"] == learner.evaluate_examples(cut)["loss"]
