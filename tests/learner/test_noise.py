"""Noise on embeddings: how it is drawn, and that no cut of a step changes it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import dataset_rows as rows
import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers
from test_scorer import gradient, padded

from agentrl.learner.examples import candidates_of
from agentrl.learner.noise import Noise
from agentrl.learner.packing import pack
from agentrl.objectives import Needs

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHA = 5.0
SFT = {"name": "sft", "neftune_alpha": ALPHA}


def noise(seed: tuple[int, ...] = (0, 3), width: int = 32) -> Noise:
    return Noise(alpha=ALPHA, seed=seed, width=width)


def test_noise_is_uniform_within_the_papers_bound() -> None:
    row = np.arange(99, dtype=np.int32)  # a text of 100 tokens
    found, bound = noise(width=256).of_row(row), ALPHA / math.sqrt(100 * 256)
    assert found.shape == (99, 256)
    assert 0.999 * bound < float(np.abs(found).max()) <= bound
    assert float(found.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert abs(float(found.mean())) < 0.02 * bound


def test_noise_is_that_of_seed_step_and_row() -> None:
    row, other = np.arange(5, dtype=np.int32), np.arange(1, 6, dtype=np.int32)
    first = noise().of_row(row)
    assert np.array_equal(first, noise().of_row(row.astype(np.int64)))
    for different in (noise((0, 4)).of_row(row), noise((1, 3)).of_row(row), noise().of_row(other)):
        assert not np.isclose(first, different).any()


@pytest.mark.parametrize("size", [1, 3])
def test_rows_of_a_pack_have_their_own_noise_and_share_no_token(size: int) -> None:
    examples = [one for row in rows.make_examples("supervised") for one in (row, row)]
    examples = rows.joined(examples, size) if size > 1 else examples
    samples = candidates_of(examples, Needs(noise=ALPHA)).samples
    packed = pack(samples, torch.device("cpu"))
    assert len(packed.ids) == sum(sample.num_tokens for sample in samples)
    found = noise().of_pack(samples, packed).numpy()
    for row, places in zip((row for sample in samples for row in sample.rows), packed.places, strict=True):
        assert np.array_equal(packed.ids.numpy()[places], row)
        assert np.array_equal(found[places], noise().of_row(row))
    assert found.any(axis=1).all()


def test_the_gradient_does_not_depend_on_cuts_orders_or_packing(model_folder: Callable[..., str]) -> None:
    examples = rows.make_examples("supervised")
    learner = fakes.make_learner(model_folder(kind="starcoder2"), fakes.run_config(), SFT, master_dtype=torch.float64)

    def at_step_0(examples: list[object], **settings: object) -> dict[str, torch.Tensor]:
        learner.step = 0
        return gradient(learner, examples, **settings)

    whole = at_step_0(examples)
    for other in (
        at_step_0(examples, tokens_per_micro_batch=1),
        at_step_0(examples[::-1], tokens_per_micro_batch=30),
        at_step_0(rows.joined(examples, 3)),
    ):
        assert fakes.distance(other, whole) < 1e-12
    learner.step = 1
    assert fakes.distance(gradient(learner, examples), whole) > 1e-3, "another step has other noise"
    plain = fakes.make_learner(model_folder(kind="starcoder2"), fakes.run_config(), "sft", master_dtype=torch.float64)
    assert fakes.distance(gradient(plain, examples), whole) > 1e-3


@pytest.mark.parametrize("kind", ["starcoder2", "gemma", "gemma3_text"])
def test_the_loss_is_that_of_transformers_with_the_same_noise_on_its_embeddings(kind: str, model_folder: Callable[..., str]) -> None:
    folder, examples = model_folder(kind=kind), rows.make_examples("supervised")
    learner = fakes.make_learner(folder, fakes.run_config(), SFT, master_dtype=torch.float64)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = padded([one.texts[0].ids for one in examples], 0)
    added = torch.zeros(*ids.shape, 32, dtype=torch.float64)
    for place, example in enumerate(examples):
        row = example.texts[0].ids[:-1]
        added[place, : len(row)] = torch.from_numpy(noise((0, 0)).of_row(row)).double()
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output + added)
    with torch.no_grad():
        logprobs = model(input_ids=ids, attention_mask=(ids != 0).long()).logits.log_softmax(-1)
    handle.remove()
    terms = [
        -logprobs[row, place - 1, ids[row, place]] for row, one in enumerate(examples) for place in np.flatnonzero(one.texts[0].trained)
    ]
    assert learner.update_examples(examples)["loss"] == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_an_evaluation_has_no_noise(model_folder: Callable[..., str]) -> None:
    examples = rows.make_examples("supervised")
    noisy, plain = (fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.0}), objective) for objective in (SFT, "sft"))
    assert noisy.evaluate_examples(examples)["loss"] == pytest.approx(plain.evaluate_examples(examples)["loss"], rel=1e-6)
    assert noisy.update_examples(examples)["loss"] != pytest.approx(plain.update_examples(examples)["loss"], rel=1e-6)
