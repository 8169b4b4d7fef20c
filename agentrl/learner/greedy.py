"""What the policy answers with the weights as they are: the most likely tokens, one prompt after the other, in the learner's own process.

For people to read at an evaluation. It is the model's own forward pass with transformers' attention and cache, its adapter on, without
dropout; rollouts come from an engine.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from agentrl.learner.attention import ATTENTION

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from agentrl.learner.model import Policy


@torch.no_grad()
def greedy(policy: Policy, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Collection[int]) -> list[list[int]]:
    """The most likely continuation of each prompt.

    Args:
        policy: on this rank whole; nothing of it changes.
        prompts: token ids, at least one each.
        max_tokens: longest continuation; it ends earlier where the model's positions do.
        stop_ids: a continuation ends with the first of these, which belongs to it.
    """
    positions = getattr(policy.base.config.get_text_config(), "max_position_embeddings", None)
    with _as_transformers_runs_it(policy):
        found = []
        for prompt in prompts:
            room = max_tokens if positions is None else max(min(max_tokens, positions - len(prompt)), 0)
            found.append(_continued(policy, list(prompt), room, stop_ids))
        return found


def _continued(policy: Policy, prompt: list[int], room: int, stop_ids: Collection[int]) -> list[int]:
    base: Any = policy.base
    half = policy.dtype == torch.bfloat16
    # its newer and its older name; whatever trains packed is attention alone, and this cache fits it
    name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
    fed, ids, kept = prompt, [], {name: DynamicCache(config=base.config)}
    for _ in range(room):
        with torch.autocast(base.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            out = base(input_ids=torch.tensor([fed], device=base.device), use_cache=True, logits_to_keep=1, **kept)
        token = int(out.logits[0, -1].argmax())
        ids.append(token)
        if token in stop_ids:
            break
        fed = [token]
    return ids


@contextlib.contextmanager
def _as_transformers_runs_it(policy: Policy) -> Iterator[None]:
    """Plain attention, and no layer that keeps only its inputs for a backward pass; both are as before at the end."""
    training = [module for module in policy.model.modules() if module.training]
    for module in training:
        module.training = False
    policy.base.set_attn_implementation("sdpa" if policy.base._supports_sdpa else "eager")
    try:
        yield
    finally:
        policy.base.set_attn_implementation(ATTENTION)
        for module in training:
            module.training = True
