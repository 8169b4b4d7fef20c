"""One text in two vocabularies: which tokens cover the same bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_fakes import byte_level
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agentrl.errors import ConfigError
from agentrl.learner.alignment import PIECE, Alignment, Vocabulary, matched, pieces
from agentrl.learner.samples import Sample


def sentence_piece(*, normalizer: Any = None) -> Any:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdefghijklmnopqrstuvwxyz", "\u2581h", "el", "\u2581hel"]
    merges = [("\u2581", "h"), ("e", "l"), ("\u2581h", "el")]
    backend = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


OWN = byte_level([("h", "e"), ("l", "l"), ("he", "ll")], more=("<|user|>",))
OTHER = byte_level([("e", "l"), ("l", "o"), ("h", "el")], eos="</s>", bos="<s>")
A, B = Vocabulary(OWN, "student"), Vocabulary(OTHER, "teacher")


def sample(prompt: list[int], completion: list[int]) -> Sample:
    ids = np.array([*prompt, *completion], dtype=np.int32)
    places = np.arange(len(prompt) - 1, len(ids) - 1)
    return Sample(
        group=0,
        rows=(ids[:-1],),
        sources=(places,),
        targets=ids[len(prompt) :].astype(np.int64),
        sampler_logprobs=np.zeros(len(completion), dtype=np.float32),
        masked=False,
    )


def spelled(vocabulary: Vocabulary, ids: np.ndarray, groups: np.ndarray) -> list[bytes]:
    """The bytes of each piece."""
    return [vocabulary.spelled(ids[groups == one].tolist()) for one in range(int(groups.max(initial=-1)) + 1)]


def test_pieces_end_where_both_have_a_token_that_ends() -> None:
    own, other = pieces([2, 4, 5, 9], [1, 4, 7, 9])
    assert own.tolist() == [0, 0, 1, 1]
    assert other.tolist() == [0, 0, 1, 1]


def test_behind_the_last_common_end_there_is_no_piece() -> None:
    own, other = pieces([2, 4, 6], [2, 5])
    assert own.tolist() == [0, -1, -1]
    assert other.tolist() == [0, -1]
    assert pieces([], [])[0].tolist() == []


def test_the_teacher_reads_the_same_bytes_in_its_own_tokens() -> None:
    given = sample(A.encode("say hello"), [*A.encode("hello hello"), OWN.eos_token_id])
    got = Alignment(A, B, skips_ends=True).aligned(given)
    view = got.view
    assert view is not None
    assert [int(view.rows[0][0]), *B.encode("say hello"), *B.encode("hello hello")] == [
        OTHER.bos_token_id,
        *view.rows[0][1:],
    ]
    assert view.targets.tolist() == [*B.encode("hello hello"), OTHER.eos_token_id]
    whole = spelled(A, given.targets, view.own_groups)
    assert whole == spelled(B, view.targets, view.groups)
    assert b"".join(whole) == b"hello hello"
    assert whole[:2] == [b"hello", b" "], "he+ll+o and h+el+lo meet at the end of the word alone"
    assert view.own_groups[-1] == view.groups[-1] == -1, "end tokens are left out"
    assert got.columns[PIECE].sum() == len(whole)
    assert got.columns[PIECE][:3].tolist() == [1.0, 0.0, 1.0], "hell+o, then the space"


def test_end_tokens_are_a_piece_of_their_own_where_they_count() -> None:
    given = sample(A.encode("a"), [*A.encode("b"), OWN.eos_token_id])
    view = Alignment(A, B, skips_ends=False).aligned(given).view
    assert view is not None
    assert view.own_groups.tolist() == [0, 1]
    assert view.groups.tolist() == [0, 1]
    assert view.targets[-1] == OTHER.eos_token_id


def test_a_special_token_that_the_teacher_has_not_is_text_to_it() -> None:
    given = sample([OWN.convert_tokens_to_ids("<|user|>"), *A.encode("x")], A.encode("y"))
    view = Alignment(A, B, skips_ends=True).aligned(given).view
    assert view is not None
    assert B.spelled(view.rows[0].tolist()[1:]) == b"<|user|>x"


def test_several_rows_and_stretches_of_a_sample_are_numbered_on() -> None:
    ids = np.array([*A.encode("q"), *A.encode("hell"), *A.encode("?"), *A.encode("lo")], dtype=np.int32)
    trained = np.array([1, 3, 4])
    row = dataclasses.replace(sample([1], [2]), rows=(ids[:-1],), sources=(trained - 1,), targets=ids[trained].astype(np.int64))
    twice = dataclasses.replace(row, rows=row.rows * 2, sources=row.sources * 2, targets=np.tile(row.targets, 2))
    view = Alignment(A, B, skips_ends=True).aligned(twice).view
    assert view is not None
    assert view.own_groups.tolist() == [0, 1, 1, 2, 3, 3]
    assert [len(places) for places in view.sources] == [3, 3]
    assert view.targets[view.groups == 1].tolist() == B.encode("lo")


def test_bytes_that_are_no_text_are_in_no_piece_from_there_on() -> None:
    broken = [*A.encode("hell"), *A.encode("\u00e9")[:1]]
    view = Alignment(A, B, skips_ends=True).aligned(sample(A.encode("a"), broken)).view
    assert view is not None
    assert view.own_groups.tolist() == [0, -1]


def test_sentence_piece_begins_with_a_space_that_is_no_part_of_the_text() -> None:
    there = Vocabulary(sentence_piece(), "teacher")
    view = Alignment(A, there, skips_ends=True).aligned(sample(A.encode("a"), A.encode("hello"))).view
    assert view is not None
    assert (view.own_groups >= 0).all()
    assert len(np.unique(view.groups)) == len(np.unique(view.own_groups))
    assert spelled(A, np.array(A.encode("hello")), view.own_groups) == [b"hell", b"o"]


def test_words_are_matched_by_their_bytes_whatever_letters_stand_for_them() -> None:
    own, other = matched(A, Vocabulary(sentence_piece(), "teacher"))
    table = dict(zip(own.tolist(), other.tolist(), strict=True))
    there = sentence_piece()
    assert table[OWN.convert_tokens_to_ids("\u0120")] == there.convert_tokens_to_ids("\u2581")
    assert table[OWN.convert_tokens_to_ids("h")] == there.convert_tokens_to_ids("h") or table[OWN.convert_tokens_to_ids("h")] == 1 + ord(
        "h"
    )
    assert OWN.convert_tokens_to_ids("hell") not in table
    assert len(set(table.values())) == len(table)


def test_a_tokenizer_that_changes_letters_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="tokenizer of teacher does not write a text byte for byte"):
        Vocabulary(sentence_piece(normalizer=normalizers.Lowercase()), "teacher")


@given(st.text(max_size=30), st.text(max_size=8))
def test_every_piece_has_the_same_bytes_on_both_sides_and_a_clean_text_is_all_pieces(text: str, prompt: str) -> None:
    own = A.encode(text)
    if not own:
        return
    view = Alignment(A, B, skips_ends=True).aligned(sample([5, *A.encode(prompt)], own)).view
    assert view is not None
    assert spelled(A, np.array(own), view.own_groups) == spelled(B, view.targets, view.groups)
    assert (view.own_groups >= 0).all()
    assert (view.groups >= 0).all()
    assert (np.diff(view.own_groups) >= 0).all()
