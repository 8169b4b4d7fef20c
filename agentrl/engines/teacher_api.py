"""What a teacher's vLLM server is asked, and what it may answer: log-probs of given tokens, never a number in the place of a missing one.

The route is `/v1/completions`, which every vLLM server has: the whole text goes in as token ids, and `prompt_logprobs` comes back. Those
are the model's own log-probs, at temperature 1, whatever the server samples at. Pure functions without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from agentrl.engines.vllm_api import NO_LOGPROB, ROUNDING, BadAnswer, shown_body

COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
TOKENIZE = "/tokenize"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """A teacher's log-probs of the tokens of a text from some place on, in nats at temperature 1."""

    logprobs: np.ndarray
    """[scored] float32."""
    top_ids: np.ndarray
    """[scored, k] int32: the likeliest tokens, the likeliest first; k may be 0."""
    top_logprobs: np.ndarray
    """[scored, k] float32; -inf where the teacher gives a token no chance."""


def score_body(model: str, ids: np.ndarray, top_k: int) -> bytes:
    """The JSON body that asks for the log-probs of a text's tokens, and of the `top_k` likeliest in each one's place.

    One token is sampled, because vLLM knows no request without one, and thrown away.
    """
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": ids.tolist(),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_k,
            "add_special_tokens": False,
            "ignore_eos": True,
        }
    )


class _Entry(msgspec.Struct, gc=False):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Entry] | None] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Tokens(msgspec.Struct):
    tokens: list[int]


_TOKENS = msgspec.json.Decoder(_Tokens)
_ANSWER = msgspec.json.Decoder(_Answer)
_MODELS = msgspec.json.Decoder(_Models)


def parse_scores(body: bytes, url: str, ids: np.ndarray, first: int, top_k: int, vocab_size: int | None) -> TokenScores:
    """The scores of `ids[first:]` in an answer with status 200; raises `BadAnswer` for any that is not exactly what was asked.

    Args:
        body: of the answer.
        url: of the server, for messages.
        ids: the whole text.
        first: place of the first token that is scored, from 1.
        top_k: likeliest tokens that were asked for.
        vocab_size: of the student; ids must be below it. None leaves that open.
    """
    try:
        answer = _ANSWER.decode(body)
        found = answer.choices[0].prompt_logprobs if len(answer.choices) == 1 else None
        if found is None:
            raise ValueError("it has no prompt_logprobs")
        if len(found) != len(ids):
            raise ValueError(f"{len(found)} positions came and the text has {len(ids)} tokens")
        return _columns(found[first:], ids[first:], top_k, vocab_size)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise BadAnswer(f"teacher {url} gave an answer that nothing can be learned from: {error}; it began {shown_body(body)}") from None


def _columns(found: list[dict[str, _Entry] | None], ids: np.ndarray, top_k: int, vocab_size: int | None) -> TokenScores:
    logprobs = np.empty(len(ids), dtype=np.float64)
    top_ids = np.empty((len(ids), top_k), dtype=np.int64)
    top_logprobs = np.empty((len(ids), top_k), dtype=np.float64)
    for place, (entries, token) in enumerate(zip(found, ids.tolist(), strict=True)):
        if entries is None or str(token) not in entries:
            raise ValueError(f"token {token} at place {place} has no log-prob: does the teacher have another tokenizer?")
        logprobs[place] = entries[str(token)].logprob
        if top_k:
            ranked = sorted(((int(name), entry.logprob) for name, entry in entries.items()), key=lambda one: (-one[1], one[0]))
            if len(ranked) < top_k:
                raise ValueError(f"{len(ranked)} of the {top_k} likeliest tokens came at place {place}")
            top_ids[place], top_logprobs[place] = zip(*ranked[:top_k], strict=True)
    wrong = ~((logprobs > NO_LOGPROB) & (logprobs <= ROUNDING))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"the log-prob of token {ids[at]} is {logprobs[at]:g}, where {NO_LOGPROB:g} stands for NaN or none")
    if not (top_logprobs <= ROUNDING).all():  # NaN is not
        raise ValueError("a log-prob of a likeliest token is no number up to 0")
    if top_ids.size and (top_ids.min() < 0 or top_ids.max() >= (vocab_size or 2**31)):
        raise ValueError(f"ids from {top_ids.min()} to {top_ids.max()} came and the student's vocabulary has {vocab_size or 2**31}")
    top_logprobs[top_logprobs <= NO_LOGPROB] = -np.inf
    return TokenScores(
        logprobs=np.minimum(logprobs, 0).astype(np.float32),
        top_ids=top_ids.astype(np.int32),
        top_logprobs=np.minimum(top_logprobs, 0).astype(np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server says it serves."""

    model: str
    context_length: int | None
    """Tokens of prompt and completion together; None where it does not say."""


def parse_models(body: bytes, url: str) -> Served:
    """The model of a server, adapters left out; raises `BadAnswer` where it names none."""
    try:
        own = [one for one in _MODELS.decode(body).data if one.parent is None]
        return Served(model=own[0].id, context_length=own[0].max_model_len)
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise BadAnswer(f"teacher {url} names no model: {error}; its answer to {MODELS} began {shown_body(body)}") from None


def tokenize_body(model: str, text: str) -> bytes:
    """The JSON body that asks for a text's tokens, without special ones."""
    return msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})


def parse_tokens(body: bytes, url: str) -> list[int]:
    """The tokens in an answer to it; raises `BadAnswer` where there are none."""
    try:
        return _TOKENS.decode(body).tokens
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadAnswer(f"teacher {url} gives no tokens: {error}; its answer to {TOKENIZE} began {shown_body(body)}") from None
