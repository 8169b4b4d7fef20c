"""Packed rows: nothing is lost, no sequence is too long, and no token's loss or gradient changes."""

from __future__ import annotations

from dataclasses import replace

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from templates import KINDS, tokenizer_of

from agentrl.config_data import DataConfig
from agentrl.data.packing import best_fit, packed
from agentrl.data.prepare import prepare_rows
from agentrl.data.rows import ObjectRows
from agentrl.errors import ConfigError

TOKENIZER = tokenizer_of(KINDS["chatml"])
lengths_of_rows = st.lists(st.integers(2, 30), min_size=1, max_size=40)


def tokens(lengths, seed=0):
    draw = np.random.default_rng(seed)
    return ObjectRows([{"input_ids": draw.integers(3, 48, length).tolist()} for length in lengths])


def prepared(rows, **data):
    return prepare_rows(rows, DataConfig(**data), "supervised", TOKENIZER)


def _gradients(learner):
    return {name: one.grad.clone() for name, one in learner.policy.named_parameters() if one.grad is not None}


def pieces(examples):
    return [text for at in range(len(examples)) for text in examples[at].texts]


@given(lengths=st.lists(st.integers(1, 16), max_size=40))
def test_best_fit_puts_each_into_the_fullest_bin_that_holds_it(lengths):
    expected: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        open_bins = [one for one in expected if sum(lengths[at] for at in one) + lengths[place] <= 16]
        if open_bins:
            max(open_bins, key=lambda one: sum(lengths[at] for at in one)).append(place)
        else:
            expected.append([place])
    found = best_fit(lengths, 16)
    assert sorted(at for one in found for at in one) == list(range(len(lengths)))
    # which of two bins that are as full is taken differs; how full the bins become does not
    assert sorted(sum(lengths[at] for at in one) for one in found) == sorted(sum(lengths[at] for at in one) for one in expected)


@given(lengths=lengths_of_rows)
def test_bfd_keeps_every_row_whole(lengths):
    rows = tokens(lengths)
    found = prepared(rows, packing="bfd", max_length=32)
    assert sorted(text.ids.tolist() for text in pieces(found)) == sorted(row["input_ids"] for row in rows)
    assert all(one.joined and one.num_tokens <= 32 for one in found)
    assert found.counts["data/rows"] == len(lengths)
    assert found.counts["data/sequences"] == len(found)
    assert found.counts["data/fill"] == pytest.approx(sum(lengths) / (32 * len(found)))


@given(lengths=lengths_of_rows)
def test_bfd_split_cuts_long_rows_into_full_pieces_and_a_rest(lengths):
    rows = tokens(lengths)
    found = prepared(rows, packing="bfd_split", max_length=8)
    expected = [row["input_ids"][at : at + 8] for row in rows for at in range(0, len(row["input_ids"]), 8)]
    # a rest of one token has nothing before it, and trains nothing
    assert sorted(text.ids.tolist() for text in pieces(found)) == sorted(piece for piece in expected if len(piece) > 1)
    assert all(one.num_tokens <= 8 for one in found)


@given(lengths=lengths_of_rows)
def test_wrapped_is_one_stream_cut_where_a_sequence_is_full(lengths):
    rows = tokens(lengths)
    found = prepared(rows, packing="wrapped", max_length=8)
    stream = [token for row in rows for token in row["input_ids"]]
    ends = np.cumsum(lengths)
    cuts = sorted({*ends.tolist(), *range(8, len(stream), 8)})
    expected = [stream[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]
    assert [text.ids.tolist() for text in pieces(found)] == [piece for piece in expected if len(piece) > 1]


def test_the_first_token_of_a_later_piece_is_not_trained_and_the_prompt_is_cut_with_it():
    row = {"input_ids": list(range(10, 22)), "completion_mask": [0] * 5 + [1] * 7}
    found = prepared(ObjectRows([row]), packing="bfd_split", max_length=4)
    texts = sorted(pieces(found), key=lambda text: text.ids[0])
    assert [text.ids.tolist() for text in texts] == [[14, 15, 16, 17], [18, 19, 20, 21]]  # the first piece is all prompt
    assert [text.trained.tolist() for text in texts] == [[False, True, True, True], [False, True, True, True]]
    assert [text.prompt_length for text in texts] == [1, 0]


def test_a_packed_sequence_says_where_its_rows_stand():
    found = prepared(tokens([4, 4, 4]), packing="bfd", max_length=12)
    assert found[0].where == "the dataset, row 1 and 2 more"
    assert prepared(tokens([4]), packing="bfd", max_length=12)[0].where == "the dataset, row 1"


@pytest.mark.parametrize("packing", ["bfd", "bfd_split", "wrapped"])
def test_a_packed_step_has_the_losses_and_the_gradient_of_its_pieces_alone(packing, tmp_path):
    found = prepared(tokens([9, 4, 17, 6, 12, 3, 8, 5], seed=3), packing=packing, max_length=17 if packing == "bfd" else 7)
    together = [found[at] for at in range(len(found))]
    alone = [replace(one, texts=(text,), rewards=(0.0,), joined=False) for one in together for text in one.texts]
    assert len(alone) > len(together)
    folder = fakes.tiny_model(tmp_path / "model")
    config = fakes.run_config(objective={"name": "sft"}, learner={"max_grad_norm": None, "lr": 0.0})
    gradients, metrics = [], []
    for examples in (together, alone):
        learner = fakes.make_learner(folder, config, "sft")
        learner.policy.base.double()
        gradients.append({})
        learner.models.optimizers[0].register_step_pre_hook(lambda *_, learner=learner: gradients[-1].update(_gradients(learner)))
        metrics.append(learner.update_examples(examples))
        assert learner.evaluate_examples(examples)["loss"] == pytest.approx(metrics[-1]["loss"], rel=1e-9)
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-9)
    assert metrics[0]["learner/counted_tokens"] == metrics[1]["learner/counted_tokens"] == sum(one.num_trained for one in together)
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-7, atol=1e-10)


def test_packing_takes_a_length_and_rows_without_weights():
    rows = prepared(tokens([4]))
    with pytest.raises(ConfigError, match=r"packing is bfd, and sequences have no length: set data.max_length"):
        packed(rows, "bfd", None)
    weighted = ObjectRows([{"input_ids": [1, 2], "weight": 2.0}])
    with pytest.raises(ConfigError, match=r"the rows have a `weight` each"):
        prepared(weighted, packing="bfd", max_length=8)
    with pytest.raises(ConfigError, match=r"learns from preference data, which cannot be packed"):
        prepare_rows(ObjectRows([{"prompt": "a", "chosen": "b", "rejected": "c"}]), DataConfig(packing="bfd"), "preference", TOKENIZER)
