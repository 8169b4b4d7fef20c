"""Reward models from their training to their use: what is learned is what is served, token for token."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

sys.path.insert(0, str(Path(__file__).parents[1] / "learner"))

import learner_fakes as fakes
from reward_models import SIZES

from agentrl.config_data import DataConfig
from agentrl.data.prepare import prepare_rows
from agentrl.data.rows import ObjectRows
from agentrl.learner.packing import pack
from agentrl.learner.samples import Sample
from agentrl.quickstart.tokenizer import build_tokenizer
from agentrl.rewards.reward_model import reward_model
from agentrl.servers.reward_rows import RewardOptions, RewardRow
from agentrl.servers.reward_scorer import RewardScorer

WORDS = ["what is two and two? four, and so on. five\nsix"]
TEXTS = [
    {"prompt": "what is two and two? ", "chosen": "four", "rejected": "five, and so on"},
    {"prompt": "what is four and two? ", "chosen": "six, and so on", "rejected": "two"},
    {"prompt": "what", "chosen": "soever is two", "rejected": " is four"},  # a token lies across the prompt's end
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in TEXTS
]
STEPS = [
    {"prompt": "what is two and two? ", "completions": ["two and two is four", "four and so on"], "labels": [True, False]},
    {"prompt": "what is four? ", "completions": ["five"], "labels": [False]},
]


@pytest.fixture
def model(tmp_path):
    """A small language model with a tokenizer."""
    folder, tokenizer = tmp_path / "model", build_tokenizer(WORDS, vocabulary=300)
    torch.manual_seed(3)
    config = Qwen3Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **SIZES)
    config.initializer_range = 0.15
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer


def trained(model, name, rows, folder, *, steps=10):
    """A learner that has learned the rows, its tokenized rows, and the folder that it was saved in."""
    path, tokenizer = model
    kind = "stepwise" if name == "process_reward_model" else "preference"
    examples = list(prepare_rows(ObjectRows(rows), DataConfig(), kind, tokenizer))
    learner = fakes.make_learner(path, fakes.run_config(learner={"lr": 3e-3}), name)
    for _ in range(steps):
        learner.update_examples(examples)
    learner.export(folder, tokenizer)
    return learner, examples


@torch.no_grad()
def judged(policy, texts):
    """[texts, labels] outputs at the last token of each text, in one pack."""
    samples = [
        Sample(
            group=group,
            rows=(text,),
            sources=(np.array([len(text) - 1]),),
            targets=text[-1:].astype(np.int64),
            sampler_logprobs=np.zeros(1, dtype=np.float32),
            masked=False,
        )
        for group, text in enumerate(texts)
    ]
    return policy(pack(samples, torch.device("cpu"))).outputs.double().numpy()


@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["texts", "messages"])
def test_the_served_scores_are_those_that_were_trained(model, rows, tmp_path):
    learner, examples = trained(model, "reward_model", rows, tmp_path / "reward")
    expected = [judged(learner.policy, [text.ids for text in example.texts])[:, 0] for example in examples]
    assert all(chosen > rejected for chosen, rejected in expected), "it has learned which is better"
    scorer = RewardScorer(RewardOptions(model=str(tmp_path / "reward"), device="cpu"))
    given = [RewardRow(prompt=row["prompt"], completion=row[column]) for row in rows for column in ("chosen", "rejected")]
    for one, example_text in zip(given, (text for example in examples for text in example.texts), strict=True):
        assert scorer._encode(one)[0] == example_text.ids.tolist()
    assert [score.value for score in scorer.score(given)] == pytest.approx(np.concatenate(expected).tolist(), abs=1e-4)


def test_the_served_judgements_of_steps_are_those_that_were_trained(model, tmp_path):
    learner, examples = trained(model, "process_reward_model", STEPS, tmp_path / "reward", steps=20)
    assert learner.evaluate_examples(examples)["accuracy"] == 1
    scorer = RewardScorer(RewardOptions(model=str(tmp_path / "reward"), device="cpu"))
    assert scorer.steps
    given = [RewardRow(prompt=row["prompt"], completion="", steps=tuple(row["completions"])) for row in STEPS]
    for row, score, example in zip(given, scorer.score(given), examples, strict=True):
        (text,) = example.texts
        ends = np.flatnonzero(~np.isnan(text.labels))
        assert scorer._encode(row) == (text.ids.tolist(), ends.tolist())
        outputs = judged(learner.policy, [text.ids[: end + 1] for end in ends])
        right = 1 / (1 + np.exp(outputs[:, 0] - outputs[:, 1]))
        assert list(score.steps) == pytest.approx(right.tolist(), abs=1e-4)
        assert [chance > 0.5 for chance in score.steps] == [bool(label) for label in text.labels[ends]]


def test_it_is_a_reward_of_a_run(model, tmp_path):
    trained(model, "reward_model", TEXTS, tmp_path / "reward")
    ask = reward_model(str(tmp_path / "reward"))
    row = TEXTS[0]
    good, bad = ask(prompts=[row["prompt"]] * 2, completions=[row["chosen"], row["rejected"]])
    assert good > bad


def test_the_folder_says_how_its_rows_are_tokenized(model, tmp_path):
    trained(model, "reward_model", TEXTS, tmp_path / "reward", steps=1)
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["tokenized_by"] == "agentrl"
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}
