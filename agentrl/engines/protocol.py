"""What every inference engine offers, whether it runs beside the learner or behind a URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agentrl.records import FinishReason, SamplingContract, Version, VersionRun

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of the engine."""

    ids: np.ndarray
    """[prompt] int32: the whole context."""
    max_tokens: int
    """Most tokens to sample; the caller has clipped it to the context."""
    contract: SamplingContract
    seed: int
    """Random stream of this call: the same seed, ids and weights give the same draws."""
    stop_ids: tuple[int, ...]
    """Sampling one of these ends the completion; the stop token is part of it."""
    session: str = ""
    """Calls of one episode share it, so that an engine may keep their KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine sampled."""

    ids: np.ndarray
    """[sampled] int32."""
    logprobs: np.ndarray
    """[sampled] float32 nats, under softmax(logits / temperature); the logits are those of the contract's mixture."""
    versions: tuple[VersionRun, ...]
    """Runs over `ids`, from 0: of the policy. What the reference alone sampled has the version that was current when it began."""
    finish_reason: FinishReason


class Engine(Protocol):
    """A sampler, as the rollout processes see it. Cancelling a `generate` aborts the request on the engine."""

    context_length: int
    """Tokens that prompt and completion may hold together."""

    async def generate(self, request: Request) -> Completion:
        """Sample one completion. Raises `SamplerUnavailable` when the engine died or missed its deadline."""
        ...

    async def aclose(self) -> None:
        """Drop the connection; requests in flight are aborted."""
        ...


class Publisher(Protocol):
    """An engine, as the learner sees it: blocking, and called between optimizer steps."""

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> str:
        """Replace the engine's weights between two tokens; requests in flight go on.

        Names are those of the model's own `state_dict`. Returns the checksum of what the engine read back from its own memory after
        loading; raises `PublishError` unless it equals the checksum of what was sent and every name was expected.
        """
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...
