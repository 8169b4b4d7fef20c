"""Which requests the embedded engine serves, and why it refuses the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from agentrl.engines.slots import MOST_STOPS

if TYPE_CHECKING:
    from agentrl.engines.protocol import Request


class Refused(Exception):
    """A request that cannot be served; the message says why and what to change."""


def check_request(request: Request, context_length: int, vocab_size: int, dtype: str, *, has_reference: bool) -> None:
    """Raise `Refused` for a request that an engine of this context, vocabulary and type cannot serve as it says."""
    ids, contract = request.ids, request.contract
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise Refused(f"a prompt is a row of at least one token id, got {ids.dtype} of shape {list(ids.shape)}")
    if len(ids) >= context_length:
        raise Refused(
            f"the prompt has {len(ids)} tokens and leaves no room in the context of {context_length}; "
            "shorten it or raise engine.context_length"
        )
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise Refused(f"prompt ids must be from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}: another model's tokenizer?")
    if request.max_tokens < 1 or request.seed < 0:
        raise Refused(f"max_tokens must be at least 1 and seed at least 0, got {request.max_tokens} and {request.seed}")
    if len(request.stop_ids) > MOST_STOPS:
        raise Refused(f"at most {MOST_STOPS} ids may end a completion, got {len(request.stop_ids)}")
    if not (contract.temperature >= 0 and math.isfinite(contract.temperature)):
        raise Refused(f"the temperature must be a number from 0, got {contract.temperature}")
    if not (0 < contract.top_p <= 1 and contract.top_k >= 0 and 0 <= contract.min_p < 1):
        raise Refused(f"0 < top_p <= 1, top_k >= 0 and 0 <= min_p < 1 must hold, got {contract.top_p}, {contract.top_k}, {contract.min_p}")
    if not 0 <= contract.reference_share <= 1:
        raise Refused(f"reference_share must be a number from 0 to 1, got {contract.reference_share}")
    if contract.reference_share and not has_reference:
        raise Refused(
            f"reference_share is {contract.reference_share:g} and this engine holds no reference model; start it with one "
            "(reference_dir of start_engine, --reference of its process), or sample from the policy alone with reference_share=0"
        )
    if contract.adapter is not None:
        raise Refused(f"the embedded engine serves no adapters, got {contract.adapter!r}; publish merged weights")
    if contract.dtype != dtype:
        raise Refused(
            f"the contract says dtype {contract.dtype} and this engine computes in {dtype}; make contracts with the engine's dtype"
        )
