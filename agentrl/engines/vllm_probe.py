"""What a server gives a fixed text, compared with what the learner gives it: the weights themselves, and not only their bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.engines.vllm_api import GENERATE
from agentrl.engines.vllm_control import RouteFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.engines.vllm_control import Control

EXACT, HALF = 1e-3, 0.1
"""Nats by which a server may differ in float32, and in bfloat16, whose kernels differ from the learner's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A text and the learner's log-probs of it, at temperature 1."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of `ids[1:]`, in nats."""
    tolerance: float
    """Nats by which a server's may differ: 1e-3 in float32, 0.1 in bfloat16, whose kernels differ from the learner's."""

    def compare(self, server: Control, model: str) -> None:
        """Raise `RouteFailed` where the server's log-probs are others."""
        got = prompt_logprobs(server, model, self.ids)
        worst = max(abs(one - other) for one, other in zip(got, self.logprobs, strict=True))
        if not worst <= self.tolerance:  # NaN is not
            raise RouteFailed(
                f"{server.url} gives a text other log-probs than the learner's weights do, by up to {worst:.3g} nats; allowed are "
                f"{self.tolerance:g}. It serves another model, or another run left its weights there: start it again with the "
                "learner's own model and dtype"
            )


def prompt_logprobs(server: Control, model: str, ids: Sequence[int]) -> tuple[float, ...]:
    """A server's log-probs of `ids[1:]`, in nats at temperature 1; raises `RouteFailed` where it gives none."""
    sampling = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    answer = server.post(GENERATE, {"model": model, "token_ids": list(ids), "sampling_params": sampling})
    try:
        entries = answer["prompt_logprobs"][1:]
        found = tuple(float(entry[str(token)]["logprob"]) for entry, token in zip(entries, ids[1:], strict=True))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RouteFailed(f"{server.url} gives no log-probs of a prompt: {type(error).__name__}: {error} in {str(answer)[:300]}") from error
    if not all(math.isfinite(one) for one in found):
        raise RouteFailed(f"{server.url} gives log-probs that are not finite: {found}")
    return found
