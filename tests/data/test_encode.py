"""Rows of every schema as tokens: what is in them, what is trained, and what becomes of those that are too long."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import CHATML, KINDS, Kind, tokenizer_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agentrl.config_data import DataConfig
from agentrl.data.encode import Encoder, Placed
from agentrl.data.faults import RowFault
from agentrl.data.schemas import check_row, detect
from agentrl.errors import ConfigError

TOKENIZER = tokenizer_of(KINDS["chatml"])
WITH_BOS = tokenizer_of(KINDS["emits_bos"])
END = "<|im_end|>"
ASKED, SAID = {"role": "user", "content": "hello as"}, {"role": "assistant", "content": "hello a"}


def encoded(row, tokenizer=TOKENIZER, *, max_token=None, **data):
    found = detect(row)
    check_row(row, found)
    (one,) = Encoder(tokenizer, DataConfig(**data), max_token=max_token).encode([Placed(row=row, found=found, where="rows.jsonl, line 7")])
    if isinstance(one, RowFault):
        raise one
    return one


def texts_of(row, tokenizer=TOKENIZER, **data):
    return encoded(row, tokenizer, **data).example.texts


def shown(text, tokenizer=TOKENIZER):
    """The text with what is trained in brackets, and a bar behind the prompt."""
    out, on = "", False
    for at, (token, trained) in enumerate(zip(text.ids.tolist(), text.trained.tolist(), strict=True)):
        out += "]" if on and not trained else ""
        out += "|" if at and at == text.prompt_length else ""
        out += "[" if trained and not on else ""
        on = trained
        out += tokenizer.decode([token])
    return out + "]" * on


@pytest.mark.parametrize(
    ("row", "tokenizer", "expected"),
    [
        ({"text": "as you"}, TOKENIZER, "as[ you<|im_end|>]"),
        ({"text": "as<|im_end|>"}, TOKENIZER, "as[<|im_end|>]"),
        ({"text": "as"}, WITH_BOS, "<bos>[as<|im_end|>]"),
        ({"text": "<bos>as<|im_end|>"}, WITH_BOS, "<bos>[as<|im_end|>]"),
        ({"prompt": "hello", "completion": " as"}, TOKENIZER, "hello|[ as<|im_end|>]"),
        ({"prompt": "hello", "completion": " as<|im_end|>"}, WITH_BOS, "<bos>hello|[ as<|im_end|>]"),
        ({"prompt": "", "completion": "as a"}, TOKENIZER, "as[ a<|im_end|>]"),
        ({"prompt": "", "completion": "as"}, WITH_BOS, "<bos>|[as<|im_end|>]"),
    ],
)
def test_plain_rows_begin_once_and_end_once(row, tokenizer, expected):
    assert shown(texts_of(row, tokenizer)[0], tokenizer) == expected


def test_a_tokenizer_without_an_end_token_adds_none():
    bare = tokenizer_of(KINDS["chatml"])
    bare.eos_token = None
    assert shown(texts_of({"text": "as you"}, bare)[0], bare) == "as[ you]"


def test_the_whole_text_is_trained_where_that_is_asked_for():
    row = {"prompt": "hello", "completion": " as"}
    assert shown(texts_of(row, completion_only=False)[0]) == "hello|[ as<|im_end|>]"  # one token is what it starts with
    longer = {"prompt": "as hello", "completion": " as"}
    assert shown(texts_of(longer, completion_only=False)[0]) == "as[ hello| as<|im_end|>]"
    chat = {"prompt": [ASKED], "completion": [SAID]}
    assert texts_of(chat, completion_only=False)[0].trained[1:].all()


def test_a_token_across_the_border_is_cut_and_counted():
    joined = encoded({"prompt": "hell", "completion": "o as"})
    assert joined.notes == {"apart"}
    assert TOKENIZER.encode("hello") != TOKENIZER.encode("hell") + TOKENIZER.encode("o")
    assert joined.example.texts[0].ids.tolist() == TOKENIZER.encode("hell") + TOKENIZER.encode("o as") + [TOKENIZER.eos_token_id]
    assert encoded({"prompt": "hello", "completion": " as"}).notes == set()


@given(prompt=st.text(max_size=12), completion=st.text(min_size=1, max_size=12))
def test_the_prompt_is_what_the_model_is_asked_with_and_nothing_is_lost(prompt, completion):
    row = {"prompt": prompt, "completion": completion}
    (one,) = ENCODER.encode([Placed(row=row, found=detect(row))])
    text = one.example.texts[0]
    assert text.ids[: text.prompt_length].tolist() == WITH_BOS.encode(prompt)
    assert WITH_BOS.decode(text.ids) == "<bos>" + prompt + completion + END
    assert WITH_BOS.decode(text.ids[text.trained]) == completion + END


ENCODER = Encoder(WITH_BOS, DataConfig())


def test_a_piece_of_a_text_gets_no_space_before_it():
    """As sentencepiece's tokenizers put one before every text."""
    vocabulary = {word: at for at, word in enumerate(["\u2581", "\n", *"helo"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = encoded({"prompt": "hel", "completion": "lo"}, tokenizer).example.texts[0]
    assert text.ids[text.prompt_length :].tolist() == tokenizer.convert_tokens_to_ids(["l", "o"])


def test_a_pair_shares_the_tokens_of_its_prompt():
    row = {"prompt": "hell", "chosen": "o as", "rejected": "! as", "margin": 0.5}
    one = encoded(row)
    chosen, rejected = one.example.texts
    prompt = TOKENIZER.encode("hell")
    assert chosen.ids[: chosen.prompt_length].tolist() == rejected.ids[: rejected.prompt_length].tolist() == prompt
    assert [shown(chosen), shown(rejected)] == ["hell|[o as<|im_end|>]", "hell|[! as<|im_end|>]"]
    assert one.example.rewards == (1.0, 0.0)
    assert one.example.parts == {"margin": 0.5}


def test_a_pair_of_conversations_shares_its_prompt_and_may_have_a_third_answer():
    other = {"role": "assistant", "content": "as"}
    row = {"prompt": [ASKED], "chosen": [SAID], "rejected": [other], "reference": [{**other, "content": "gold"}]}
    one = encoded(row).example
    assert one.rewards == (1.0, 0.0, 0.0)
    start = "<|im_start|>user\nhello as<|im_end|>\n<|im_start|>assistant\n|["
    assert [shown(text) for text in one.texts] == [f"{start}{said}<|im_end|>]\n" for said in ("hello a", "as", "gold")]


def test_an_answer_over_several_turns_trains_the_assistant_s_alone():
    result = {"role": "tool", "name": "look", "content": "as as"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}]}
    text = texts_of({"prompt": [ASKED], "completion": [call, result, SAID]})[0]
    trained = TOKENIZER.decode(text.ids[text.trained])
    assert trained == '\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|im_end|>hello a<|im_end|>'


@pytest.mark.parametrize(("label", "reward"), [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0)])
def test_an_unpaired_row_has_its_label_as_reward(label, reward):
    one = encoded({"prompt": "hello", "completion": " as", "label": label, "weight": 2}).example
    assert one.rewards == (reward,)
    assert one.parts == {"weight": 2.0}


def test_steps_have_their_labels_at_their_last_token():
    text = texts_of({"prompt": "hello", "completions": ["as", "as a"], "labels": [True, False]}, WITH_BOS)[0]
    pieces = [
        WITH_BOS.encode("hello"),
        [*WITH_BOS.encode("as\n", add_special_tokens=False)],
        WITH_BOS.encode("as a\n", add_special_tokens=False),
    ]
    assert text.ids.tolist() == [token for piece in pieces for token in piece]
    assert text.prompt_length == len(pieces[0])
    ends = np.cumsum([len(piece) for piece in pieces])[1:] - 1
    assert {at: float(text.labels[at]) for at in np.flatnonzero(~np.isnan(text.labels))} == {ends[0]: 1.0, ends[1]: 0.0}


@pytest.mark.parametrize(
    ("row", "trained", "prompt"),
    [
        ({"input_ids": [5, 6, 7]}, [False, True, True], 0),
        ({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, [False, False, True], 2),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, [False, True, True], 1),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [0, 0, 1]}, [False, False, True], 2),
    ],
)
def test_tokens_are_taken_as_they_are(row, trained, prompt):
    text = texts_of(row)[0]
    assert (text.ids.tolist(), text.trained.tolist(), text.prompt_length) == ([5, 6, 7], trained, prompt)


def test_a_token_that_the_model_does_not_have_is_a_fault():
    with pytest.raises(RowFault, match=r"line 7: `input_ids\[1\]` must be a token of the model, at most 99, got the number 100"):
        encoded({"input_ids": [5, 100]}, max_token=99)


@pytest.mark.parametrize(
    ("row", "data", "said"),
    [
        ({"text": "a"}, {"assistant_only": True}, r"assistant_only is true, and the rows are standard language_modeling"),
        ({"text": "a"}, {"completion_only": True}, r"completion_only is true.*have no completion. Set it to null$"),
        ({"messages": [ASKED, SAID]}, {"completion_only": True}, r"or train the assistant's turns with data.assistant_only=true"),
    ],
)
def test_settings_that_do_not_fit_the_rows_are_told(row, data, said):
    with pytest.raises(ConfigError, match=said):
        encoded(row, **data)


LONG = {"prompt": "abcdefgh", "completion": "ijkl"}  # a token a letter, and one that begins and one that ends
PAIR = {"prompt": "abcdefgh", "chosen": "ijkl", "rejected": "mn"}


def test_long_rows_are_an_error_unless_it_is_said_what_becomes_of_them():
    with pytest.raises(
        RowFault, match=r"line 7: the row must be at most 9 tokens \(data.max_length\), got 14 tokens; .*drop, keep_start or keep"
    ):
        encoded(LONG, WITH_BOS, max_length=9)
    assert encoded(LONG, WITH_BOS, max_length=14).notes == set()
    assert encoded(LONG, WITH_BOS, max_length=9, long_rows="drop").example is None


@pytest.mark.parametrize(
    ("row", "long_rows", "max_length", "expected"),
    [
        (LONG, "keep_start", 12, ["<bos>abcdefgh|[ijk]"]),
        (LONG, "keep_start", 9, None),  # nothing of the completion would be left
        (LONG, "keep_end", 9, ["<bos>fgh|[ijkl<|im_end|>]"]),
        (LONG, "keep_end", 6, ["<bos>|[ijkl<|im_end|>]"]),
        (LONG, "keep_end", 5, None),  # the completion alone is longer
        (PAIR, "keep_end", 10, ["<bos>efgh|[ijkl<|im_end|>]", "<bos>efgh|[mn<|im_end|>]"]),
        (PAIR, "keep_start", 10, ["<bos>abcdefgh|[i]", "<bos>abcdefgh|[m]"]),
        ({"text": "abcdef"}, "keep_start", 4, ["<bos>[abc]"]),
        ({"text": "abcdef"}, "keep_end", 4, ["d[ef<|im_end|>]"]),
    ],
)
def test_a_cut_keeps_the_prompt_of_a_pair_alike_and_never_leaves_nothing(row, long_rows, max_length, expected):
    one = encoded(row, WITH_BOS, max_length=max_length, long_rows=long_rows)
    if expected is None:
        assert one.example is None
    else:
        assert [shown(text, WITH_BOS) for text in one.example.texts] == expected
        assert all(len(text.ids) <= max_length for text in one.example.texts)
        assert "truncated" in one.notes


def test_cut_steps_keep_a_label_or_are_left_out():
    row = {"prompt": "ab", "completions": ["cd", "ef"], "labels": [1, 0]}
    text = texts_of(row, max_length=6, long_rows="keep_start")[0]
    assert [label for label in text.labels.tolist() if not math.isnan(label)] == [1.0]
    assert encoded(row, max_length=4, long_rows="keep_start").example is None


def test_a_row_of_many_is_the_same_as_alone():
    rows = [{"text": "as you"}, {"prompt": "hell", "completion": "o"}, {"messages": [ASKED, SAID]}, {"input_ids": [4, 5]}]
    rows += [{"prompt": [ASKED], "completion": [SAID]}, PAIR]
    together = Encoder(TOKENIZER, DataConfig()).encode([Placed(row=row, found=detect(row)) for row in rows])
    for row, one in zip(rows, together, strict=True):
        for text, alone in zip(one.example.texts, encoded(row).example.texts, strict=True):
            assert text.ids.tolist() == alone.ids.tolist()
            assert text.trained.tolist() == alone.trained.tolist()


def test_tools_reach_the_template_as_a_list_or_as_text():
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    kind = Kind(template=CHATML, write=KINDS["chatml"].write)
    as_list, as_text = (
        shown(texts_of({"messages": [ASKED, SAID], "tools": tools}, tokenizer_of(kind))[0])
        for tools in ([tool], '[{"type": "function", "function": {"name": "look", "parameters": {}}}]')
    )
    assert as_list == as_text
    assert '"name": "look"' in as_list
