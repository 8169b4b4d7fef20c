from __future__ import annotations

import numpy as np
import pytest
import torch
from example_fakes import Rows, preferences, supervised
from learner_fakes import make_learner, run_config, tiny_model

from agentrl.examples import Example, Text
from agentrl.learner.greedy import greedy
from agentrl.learner.model import plain_logprobs
from agentrl.text_samples import TEXT_PROMPT, TextSample, answered, openings, table


class Letters:
    """A tokenizer that writes its ids."""

    eos_token_id = 2

    def decode(self, ids, *, skip_special_tokens):
        assert not skip_special_tokens
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind=kind) for kind in ("qwen3", "gemma3_text")}


def text_of(length, prompt_length):
    ids = np.arange(3, 3 + length, dtype=np.int32)
    return Text(ids=ids, trained=np.arange(length) >= max(prompt_length, 1), prompt_length=prompt_length)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("learner_options", [{}, {"lora": {}}, {"gradient_checkpointing": True}])
def test_each_token_is_the_most_likely_one(models, kind, learner_options):
    learner = make_learner(models[kind], run_config(learner=learner_options), "sft")
    prompts = [[5, 9, 11], [4, 4, 4, 4, 4, 4, 30]]
    for prompt, ids in zip(prompts, greedy(learner.policy, prompts, max_tokens=6, stop_ids=()), strict=True):
        assert len(ids) == 6
        for place, token in enumerate(ids):
            before = [*prompt, *ids[:place]]
            scores = [plain_logprobs(learner.policy, [*before, other])[-1] for other in range(48)]
            assert int(np.argmax(scores)) == token


def test_it_changes_nothing_of_the_next_step(models):
    rows = supervised(6)
    plain, asked = (make_learner(models["qwen3"], run_config(learner={"gradient_checkpointing": True}), "sft") for _ in range(2))
    answered(asked, Letters(), openings(Rows(rows), 2), max_tokens=4)
    assert plain.update_examples(rows)["loss"] == asked.update_examples(rows)["loss"]
    weights = dict(plain.named_weights())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in asked.named_weights())


def test_an_answer_ends_at_its_end_token_or_where_the_positions_do(models):
    learner = make_learner(models["qwen3"], run_config(), "sft")
    (free,) = greedy(learner.policy, [[5, 9, 11]], max_tokens=8, stop_ids=())
    stop = free[3]
    (ended,) = greedy(learner.policy, [[5, 9, 11]], max_tokens=8, stop_ids={stop})
    assert ended == free[: free.index(stop) + 1]
    (full,) = greedy(learner.policy, [[5] * 250], max_tokens=50, stop_ids=())
    assert len(full) == 6  # of 256 positions


def test_prompts_are_those_of_the_first_rows():
    rows = supervised(3)
    found = openings(Rows(rows), 2)
    assert [one.prompt for one in found] == [tuple(row.texts[0].ids[: row.texts[0].prompt_length].tolist()) for row in rows[:2]]
    assert all(one.prompt + one.reference == tuple(row.texts[0].ids.tolist()) for one, row in zip(found, rows, strict=False))
    assert len(openings(Rows(rows), 10)) == 3


def test_the_reference_of_a_preference_is_its_chosen_text():
    (row,) = preferences(1)
    (found,) = openings(Rows([row]), 5)
    assert found.prompt + found.reference == tuple(row.texts[0].ids.tolist())


def test_a_text_without_a_prompt_is_begun_and_packed_texts_count_each():
    rows = Rows(
        [
            Example(where="a", texts=(text_of(10, 0), text_of(200, 0), text_of(1, 0)), rewards=(0.0,) * 3, joined=True),
            Example(where="b", texts=(text_of(4, 3),), rewards=(0.0,)),
        ]
    )
    assert [len(one.prompt) for one in openings(rows, 9)] == [5, TEXT_PROMPT, 3]  # nothing can be asked of one token


def test_answers_are_told_with_prompt_and_reference(models):
    learner = make_learner(models["qwen3"], run_config(), "sft")
    rows = Rows(supervised(2))
    first, _ = answered(learner, Letters(), openings(rows, 2), max_tokens=5)
    assert first.prompt == " ".join(map(str, rows[0].texts[0].ids[: rows[0].texts[0].prompt_length]))
    assert len(first.completion.split()) == first.tokens <= 5
    assert first.ended == first.completion.endswith(" 2")


def test_the_table_fits_its_width_and_shows_what_was_cut():
    samples = [
        TextSample(prompt="What is 1 + 1?", completion="It is [bold]2[/bold]", reference="2", tokens=4, ended=True),
        TextSample(prompt="word " * 200 + "the question?", completion="so long", reference="an answer", tokens=9, ended=False),
    ]
    shown = table(samples, step=40, width=80)
    lines = shown.splitlines()
    assert lines[0] == "answers at step 40"
    assert max(map(len, lines)) <= 80
    assert "[bold]2[/bold]" in shown
    assert "(cut after 9" in shown
    assert "question?" in shown
    assert "[...]" in shown
    assert shown.isascii()
