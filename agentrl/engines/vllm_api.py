"""What is said to a vLLM server and what may come back: bodies for `/inference/v1/generate`, and answers checked before they are believed.

Pure functions without torch. vLLM's own defaults are never relied on: each field that changes the distribution or the end is sent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from agentrl.engines.protocol import Completion
from agentrl.errors import RequestRefused
from agentrl.records import Version, VersionRun

if TYPE_CHECKING:
    from agentrl.engines.protocol import Request
    from agentrl.records import FinishReason

GENERATE = "/inference/v1/generate"
METRICS = "/metrics"
LEAST_TEMPERATURE = 0.01
"""Below it vLLM samples at 0.01, whatever was asked; 0 is greedy."""
NO_LOGPROB = -9999.0
"""What vLLM sends in place of a log-prob that is NaN, minus infinity or missing."""
ROUNDING = 1e-5
"""A log-prob may exceed 0 by so much in float32."""
BENEATH_SALT = "beneath"
"""Of the prefix cache, for the model beneath the adapters."""
SHOWN_CHARS = 300
"""Of an answer that is quoted in an error."""

_VERSION = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})")


class BadAnswer(Exception):
    """A server answered something that cannot be trained on; the message says which server, what came and what should have."""


def version_text(version: Version) -> str:
    """A version as servers carry it. Example: `version_text(Version(lineage=0, step=7))` is `"0.7"`."""
    return f"{version.lineage}.{version.step}"


def parse_version(text: str) -> Version:
    """The version of a server's text; raises `ValueError` where it is none that agentrl gave."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a weight version: LINEAGE.STEP, such as 0.7")
    return Version(lineage=int(match[1]), step=int(match[2]))


def adapter_version(model: str) -> Version | None:
    """The version of an adapter's name, `policy@0.7`; None for the base model, whose answers carry versions of their own."""
    _, at, text = model.rpartition("@")
    return parse_version(text) if at else None


def base_of(model: str) -> str:
    """The served name that an adapter's name begins with, or the name itself."""
    return model.rpartition("@")[0] or model


def check_sendable(request: Request) -> None:
    """Raise `RequestRefused` for a request that vLLM would serve otherwise than it says, or not at all."""
    ids, contract = request.ids, request.contract
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise RequestRefused(f"a prompt is a row of at least one token id from 0, got {ids.dtype} of shape {list(ids.shape)}")
    if request.max_tokens < 1 or request.seed < 0:
        raise RequestRefused(f"max_tokens must be at least 1 and seed at least 0, got {request.max_tokens} and {request.seed}")
    if not (contract.temperature == 0 or LEAST_TEMPERATURE <= contract.temperature < math.inf):
        raise RequestRefused(
            f"vLLM samples at temperature 0 or from {LEAST_TEMPERATURE}, got {contract.temperature}; set sampling.temperature accordingly"
        )
    if contract.reference_share not in (0, 1):
        raise RequestRefused(
            "a vLLM server samples from the policy or from the model beneath its adapter, never from a mixture: reference_share must be "
            f"0 or 1, got {contract.reference_share}; the embedded engine mixes (engine.kind=embedded)"
        )


def reference_model(model: str, version: Version) -> str:
    """The name under which a server has the model that training started from, given the policy's newest name and version there.

    It lies beneath the adapters, and is the policy itself before that first changed. Raises `RequestRefused` where no name is left to it.
    """
    if adapter_version(model) is None and version != Version():
        raise RequestRefused(
            f"a server has version {version_text(version)} of the policy in place of the model that training started from, and "
            "reference_share is 1; set learner.lora, whose adapters leave that model as it was (engine.transport=lora), or "
            "engine.kind=embedded"
        )
    return base_of(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as one server gets it."""

    request: Request
    id: str
    """Comes back with the answer, which is nobody else's then."""
    url: str
    """Of the server, for errors."""
    model: str
    """The served name or adapter to ask for."""
    max_tokens: int
    """Of the request, clipped to the context."""
    version: Version
    """Of the weights that the server is known to have; it may have newer ones by now."""
    beneath: bool = False
    """Whether no publish changes what is asked: the model beneath the adapters, or that of a server which is given no weights. Its tokens
    have `version`, whatever the server calls them."""
    vocab_size: int | None = None
    """Sampled ids must be below it; None leaves that to whoever uses them."""


def generate_body(call: Call) -> bytes:
    """The JSON body of one call.

    The version salts the prefix cache: blocks that older weights computed, which a running request may hold across an update, are never
    read by a newer request. What lies beneath the adapters has no versions, and so its blocks last.
    """
    request = call.request
    contract = request.contract
    return msgspec.json.encode(
        {
            "request_id": call.id,
            "model": call.model,
            "token_ids": request.ids.tolist(),
            "cache_salt": BENEATH_SALT if call.beneath else version_text(call.version),
            "sampling_params": {
                "temperature": contract.temperature,
                "top_p": contract.top_p,
                "top_k": contract.top_k,
                "min_p": contract.min_p,
                "max_tokens": call.max_tokens,
                "seed": request.seed,
                "stop_token_ids": list(request.stop_ids),
                "ignore_eos": True,  # only stop_ids end a completion; the model's own end tokens are among them where they should
                "logprobs": 0,  # of the sampled token alone
                "detokenize": False,
            },
        }
    )


class _Token(msgspec.Struct, gc=False):
    token_id: int
    logprob: float


class _LogProbs(msgspec.Struct):
    content: list[_Token]


class _Span(msgspec.Struct, gc=False):
    version: str
    start: int
    end: int


class _Choice(msgspec.Struct):
    finish_reason: str
    token_ids: list[int]
    logprobs: _LogProbs
    weight_versions: list[_Span] | None = None


class _Answer(msgspec.Struct):
    request_id: str
    choices: list[_Choice]


_DECODER = msgspec.json.Decoder(_Answer)


def parse_answer(body: bytes, call: Call) -> Completion:
    """The completion in a server's answer with status 200; raises `BadAnswer` for any that is not exactly what was asked.

    A model's name with a version gives the completion that version; any other leaves it to the server's spans.
    """
    try:
        answer = _DECODER.decode(body)
        if not answer.request_id.endswith(call.id):
            raise ValueError(f"it answers the request {answer.request_id!r}, and {call.id!r} was asked")
        if len(answer.choices) != 1:
            raise ValueError(f"{len(answer.choices)} completions came for one request")
        choice = answer.choices[0]
        ids, logprobs = _columns(choice, call.max_tokens, call.vocab_size)
        reason = _finish_reason(choice, ids, call.request.stop_ids)
        named = call.version if call.beneath else adapter_version(call.model)
        if named is None:
            versions = _versions(choice.weight_versions, len(ids), call.version)
        else:
            versions = (VersionRun(version=named, start=0, end=len(ids)),)
        if call.request.contract.reference_share and versions[-1].version != call.version:
            raise ValueError(f"version {version_text(versions[-1].version)} sampled, and the model that training started from was asked")
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise BadAnswer(f"{call.url} gave an answer that cannot be trained on: {error}; it began {shown_body(body)}") from None
    return Completion(ids=ids, logprobs=logprobs, versions=versions, finish_reason=reason)


def refusal(body: bytes) -> str:
    """What a server says in an answer with an error's status."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error["message"])[:SHOWN_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return shown_body(body)


def shown_body(body: bytes) -> str:
    """The beginning of an answer, for messages."""
    return repr(body[:SHOWN_CHARS].decode("utf-8", "replace")) if body else "with nothing"


def _columns(choice: _Choice, max_tokens: int, vocab_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    if choice.finish_reason == "abort":
        raise ValueError("the server aborted the request, which nobody here asked for")
    content = choice.logprobs.content
    if not 1 <= len(choice.token_ids) <= max_tokens:
        raise ValueError(f"{len(choice.token_ids)} tokens came and 1 to {max_tokens} were asked for")
    if len(content) != len(choice.token_ids):
        raise ValueError(f"{len(choice.token_ids)} tokens came with {len(content)} log-probs")
    if [token.token_id for token in content] != choice.token_ids:
        raise ValueError("the log-probs are of other tokens than the sampled ones")
    ids = np.array(choice.token_ids, dtype=np.int64)
    if ids.min() < 0 or ids.max() >= (vocab_size or 2**31):
        raise ValueError(f"ids from {ids.min()} to {ids.max()} came and the vocabulary has {vocab_size or 2**31}; another model?")
    logprobs = np.array([token.logprob for token in content], dtype=np.float64)
    wrong = ~((logprobs > NO_LOGPROB) & (logprobs <= ROUNDING))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"the log-prob of token {at} is {logprobs[at]:g}, where {NO_LOGPROB:g} stands for NaN or none")
    return ids.astype(np.int32), np.minimum(logprobs, 0).astype(np.float32)


def _finish_reason(choice: _Choice, ids: np.ndarray, stop_ids: tuple[int, ...]) -> FinishReason:
    """The reason, which must agree with the tokens: a stop token is the last one, and there is one exactly where it says so."""
    stops = (ids[:, None] == np.array(stop_ids, dtype=np.int64)).any(1)
    if stops[:-1].any():
        raise ValueError(f"the tokens go on after the stop token at {int(stops.argmax())}")
    if choice.finish_reason == "stop" and stops[-1]:
        return "stop"
    if choice.finish_reason == "length" and not stops[-1]:
        return "length"
    raise ValueError(f"finish reason {choice.finish_reason!r} with last token {ids[-1]}, where the stop tokens are {list(stop_ids)}")


def _versions(spans: list[_Span] | None, length: int, oldest: Version) -> tuple[VersionRun, ...]:
    if not spans:
        raise ValueError("no weight versions came with the tokens; agentrl needs a vLLM that reports weight_versions")
    runs = []
    at, before = 0, oldest
    for span in spans:
        version = parse_version(span.version)
        if span.start != at or span.end <= span.start:
            raise ValueError(f"weight version {span.version} covers tokens {span.start} to {span.end}, after {at} of {length} covered ones")
        if (version.lineage, version.step) < (before.lineage, before.step):
            raise ValueError(f"tokens were sampled by version {span.version}, and the server has had {version_text(before)} already")
        runs.append(VersionRun(version=version, start=span.start, end=span.end))
        at, before = span.end, version
    if at != length:
        raise ValueError(f"weight versions cover {at} of {length} tokens")
    return tuple(runs)
