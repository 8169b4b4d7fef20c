"""What goes over the socket between the embedded engine and its clients, as wire frames.

The engine greets every connection with `Hello`. A client numbers its requests; the answer to each carries its number.
"""

from __future__ import annotations

import msgspec

from agentrl.engines.protocol import Completion, Request
from agentrl.errors import ConfigError, SamplerUnavailable
from agentrl.records import SCHEMA_VERSION, Version


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages."""


class Generate(Message, frozen=True, kw_only=True, tag=True):
    """Sample one completion; answered by `Completed` or `Failure`."""

    id: int
    request: Request


class Abort(Message, frozen=True, kw_only=True, tag=True):
    """Forget the generation `id`; not answered."""

    id: int


class Publish(Message, frozen=True, kw_only=True, tag=True):
    """Load weights between two tokens; answered by `Published` or `Failure`."""

    id: int
    version: Version
    path: str
    """A safetensors file that the engine can open while this message is unanswered."""
    partial: bool = False
    """Weights that are not in the file stay as they are; otherwise each one must be there."""


class Pause(Message, frozen=True, kw_only=True, tag=True):
    """Stop sampling; requests in flight wait. Answered by `Done`."""

    id: int


class Resume(Message, frozen=True, kw_only=True, tag=True):
    """Go on sampling. Answered by `Done`."""

    id: int


class AskStats(Message, frozen=True, kw_only=True, tag=True):
    """Answered by `Stats`."""

    id: int


class Hello(Message, frozen=True, kw_only=True, tag=True):
    """The engine's greeting: what it serves."""

    context_length: int
    vocab_size: int
    """Ids that can be sampled: rows of the output head, which may exceed the tokenizer's length."""
    dtype: str
    """`float32` or `bfloat16`: the type of its weights and the `dtype` of every contract it accepts."""
    model_type: str
    decoder: str
    """`fast`, or `generic` with the reason."""
    version: Version
    num_weights: int
    weight_bytes: int
    schema_version: int = SCHEMA_VERSION


class Completed(Message, frozen=True, kw_only=True, tag=True):
    """Answer to `Generate`."""

    id: int
    completion: Completion


class Failure(Message, frozen=True, kw_only=True, tag=True):
    """Answer to a request that was refused or failed. `id` 0: the engine itself failed."""

    id: int
    message: str
    wrong_config: bool = False
    """Whether the user has to change the configuration."""


class Published(Message, frozen=True, kw_only=True, tag=True):
    """Answer to `Publish`."""

    id: int
    version: Version
    checksum: str
    """Of the weights that were sent, read back from the engine's own memory after loading."""


class Done(Message, frozen=True, kw_only=True, tag=True):
    """Answer to `Pause` and `Resume`."""

    id: int


class Stats(Message, frozen=True, kw_only=True, tag=True):
    """Counters since the engine started."""

    id: int
    version: Version
    running: int
    waiting: int
    tokens_sampled: int
    tokens_prefilled: int
    """Prompt tokens computed; KV that was reused is not counted. Here and below, a prompt that both models need counts twice."""
    tokens_reused: int
    """Prompt tokens whose KV was taken from an earlier turn or from another request with the same prompt."""
    steps: int
    """Forward passes; one of both models counts once."""
    publishes: int
    busy_s: float
    """Seconds spent in forward passes and sampling."""


FromClient = Generate | Abort | Publish | Pause | Resume | AskStats
FromEngine = Hello | Completed | Failure | Published | Done | Stats


def checked_hello(message: object) -> Hello:
    """The first message of a connection, which must be a greeting that this release understands.

    Raises `ConfigError` where the engine cannot serve this model as it was configured, `SamplerUnavailable` for all else.
    """
    if isinstance(message, Failure):
        raise ConfigError(message.message) if message.wrong_config else SamplerUnavailable(message.message)
    if not isinstance(message, Hello):
        raise SamplerUnavailable("the embedded engine ended before it had loaded its model; its log says why")
    if message.schema_version > SCHEMA_VERSION:
        raise SamplerUnavailable(
            f"the engine speaks schema version {message.schema_version}; this agentrl knows {SCHEMA_VERSION}: use one release for both"
        )
    return message
