"""Each preference objective through the learner, in float64, beside its paper's formula on plain rows."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dataset_rows
import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "objectives"))

from preference_papers import FORMULAS, Known
from report_preference_rows import PREFERENCES

from agentrl.objectives.unpaired import with_mismatched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.examples import Example, Text
    from agentrl.learner import Learner

OPTIONS: list[dict[str, Any]] = [row.options for row in PREFERENCES]


def examples_of(learner: Learner, rows: int = 7) -> list[Example]:
    objective = learner._objective
    assert objective.data is not None
    return dataset_rows.make_examples(objective.data, 5, rows=rows, texts=3 if objective.name == "tpo" else 2)


def gradient(learner: Learner, examples: Sequence[Example], **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Of a step at rest, and its metrics."""
    taken: dict[str, torch.Tensor] = {}

    def read(optimizer: torch.optim.Optimizer, *_: object) -> None:
        taken.update({name: one.grad.clone() for name, one in learner.policy.named_parameters() if one.grad is not None})

    handle = learner.models.optimizers[0].register_step_pre_hook(read)
    config, state = learner.config, dict(learner.state)
    at_rest = {"lr": 0.0, "max_grad_norm": None} | settings
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update=at_rest)})
    metrics = learner.update_examples(examples)
    learner.config, learner.step, learner.state = config, 0, state
    handle.remove()
    return taken, metrics


class Plain:
    """The learner's policy, and the reference that it began with, by transformers alone."""

    def __init__(self, folder: str, learner: Learner) -> None:
        self.policy, self.reference = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa") for _ in range(2)
        )
        self.policy.load_state_dict(learner.policy.base.state_dict())

    def known(self, text: Text, example: Example) -> Known:
        ids = torch.from_numpy(text.ids.astype(np.int64))
        places = torch.from_numpy(np.flatnonzero(text.trained))
        tables = [
            model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)[places - 1] for model in (self.policy, self.reference)
        ]
        now, reference = (table.gather(1, ids[places][:, None])[:, 0] for table in tables)
        collision = (2 * tables[0].detach()).logsumexp(-1)
        return Known(now=now, reference=reference.detach(), collision=collision, good=example.rewards[0] > 0.5)


def make_learner(options: dict[str, Any], model_folder: Callable[..., str], **settings: Any) -> tuple[Learner, str]:
    folder = model_folder(kind="starcoder2")
    config = fakes.run_config(learner={"tokens_per_micro_batch": 40} | settings)
    return fakes.shaken(fakes.make_learner(folder, config, options, master_dtype=torch.float64)), folder


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradient_are_those_of_plain_rows_however_the_step_is_cut(
    options: dict[str, Any], model_folder: Callable[..., str]
) -> None:
    learner, folder = make_learner(options, model_folder)
    examples = examples_of(learner)
    plain = Plain(folder, learner)
    whole = with_mismatched(examples) if options["name"] == "kto" and options.get("loss") != "apo_zero_unpaired" else examples
    loss = FORMULAS[options["name"]](options, [[plain.known(text, example) for text in example.texts] for example in whole])
    loss.backward()
    expected = {f"model.{name}": one.grad for name, one in plain.policy.named_parameters() if one.grad is not None}
    for settings in ({}, {"tokens_per_micro_batch": 1}, {"tokens_per_micro_batch": 10_000}):
        found, metrics = gradient(learner, examples, **settings)
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert fakes.distance(found, expected) < 1e-11
    turned, _ = gradient(learner, examples[::-1])
    assert fakes.distance(turned, expected) < 1e-11


def test_the_baseline_of_kto_is_above_0_somewhere(model_folder: Callable[..., str]) -> None:
    """Else the mismatched completions would have proved nothing."""
    learner, folder = make_learner({"name": "kto", "beta": 1.0}, model_folder)
    found = []
    for seed in range(6):
        examples = dataset_rows.make_examples("unpaired", seed)
        _, metrics = gradient(learner, examples)
        plain = Plain(folder, learner)
        ratios = [plain.known(one.texts[1], one).ratio.item() for one in with_mismatched(examples)]
        assert metrics["kl"] == pytest.approx(max(0.0, float(np.mean(ratios))), abs=1e-9)
        found.append(metrics["kl"])
    assert max(found) > 0.01


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_of_one_row_and_one_with_an_empty_completion_are_trained(options: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"tokens_per_micro_batch": 40}), options)
    examples = examples_of(learner, rows=3)
    assert np.isfinite(learner.update_examples(examples[:1])["loss"])
    first = examples[0].texts[0]
    silent = dataclasses.replace(first, trained=np.zeros(len(first.ids), dtype=bool))
    cut = dataclasses.replace(examples[0], texts=(silent, *examples[0].texts[1:]))
    metrics = learner.update_examples([cut, *examples[1:]])
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["learner/rollouts"] == 2 * {"tpo": 3, "kto": 1, "bco": 1}.get(options["name"], 2)


def test_training_raises_margins(model_folder: Callable[..., str]) -> None:
    for name in ("dpo", "orpo", "simpo", "tpo", "kto", "bco"):
        learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.003}), {"name": name})
        examples = examples_of(learner)
        margins = [learner.update_examples(examples)["rewards/margins"] for _ in range(6)]
        assert margins[-1] > margins[0] + 1e-3, name


def test_bco_keeps_its_running_mean(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.01}), {"name": "bco", "beta": 1.0})
    examples = examples_of(learner)
    found = [learner.update_examples(examples[: 3 + number]) for number in range(4)]
    assert found[0]["delta"] == 0
    seen = [(one["rewards/mean"], one["learner/rollouts"]) for one in found]
    for number in range(1, 4):
        mean = sum(mean * count for mean, count in seen[:number]) / sum(count for _, count in seen[:number])
        assert found[number]["delta"] == pytest.approx(mean, rel=1e-6, abs=1e-9)
    before = dict(learner.state)
    learner.evaluate_examples(examples)
    assert learner.state == before, "an evaluation leaves it alone"


@pytest.mark.parametrize(
    "options", [{"name": "dpo", "loss": ["aot_unpaired", "sft"]}, {"name": "tpo"}, {"name": "kto"}, {"name": "bco"}], ids=str
)
def test_metrics_are_those_of_the_whole_step_however_it_is_cut(options: dict[str, Any], model_folder: Callable[..., str]) -> None:
    learner, _ = make_learner(options, model_folder)
    examples = examples_of(learner)
    counts = ("time/", "learner/micro_batches", "learner/tokens", "learner/computed_tokens")
    found = [gradient(learner, examples, tokens_per_micro_batch=budget)[1] for budget in (1, 40, 10_000)]
    kept = [{name: value for name, value in one.items() if not name.startswith(counts)} for one in found]
    assert kept[0] == pytest.approx(kept[2], rel=1e-9, abs=1e-12)
    assert kept[1] == pytest.approx(kept[2], rel=1e-9, abs=1e-12)
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logits/chosen", "logps/rejected"} <= kept[0].keys()
    assert kept[0]["rewards/margins"] == pytest.approx(kept[0]["rewards/chosen"] - kept[0]["rewards/rejected"], rel=1e-9, abs=1e-12)
    assert learner.evaluate_examples(examples)["loss"] == pytest.approx(kept[0]["loss"], rel=1e-9)


def test_a_step_of_good_texts_alone_says_nothing_of_bad_ones(model_folder: Callable[..., str]) -> None:
    learner, _ = make_learner({"name": "kto"}, model_folder)
    good = [dataclasses.replace(one, rewards=(1.0,)) for one in examples_of(learner)]
    metrics = gradient(learner, good)[1]
    assert "rewards/chosen" in metrics
    assert not {"rewards/rejected", "rewards/margins", "logps/rejected", "logits/rejected"} & metrics.keys()


def test_prompts_are_embedded_by_the_mean_of_their_states(model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")
    learner = fakes.make_learner(folder, fakes.run_config(learner={"tokens_per_micro_batch": 12}), {"name": "bco", "density_ratio": True})
    prompts = [one.texts[0].ids[: one.texts[0].prompt_length] for one in examples_of(learner)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        expected = [
            model.get_decoder()(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).last_hidden_state[0].mean(0)
            for ids in prompts
        ]
    found = learner.embeddings_of(prompts)
    torch.testing.assert_close(torch.from_numpy(found), torch.stack(expected), rtol=1e-4, atol=1e-5)
