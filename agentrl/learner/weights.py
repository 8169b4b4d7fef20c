"""The policy's weights as others know them: under the names of the model's own state dict, whole, with the adapter merged in a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from agentrl.learner.ranks import whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.learner.model import Policy

ADAPTER = "default"
"""peft's name for the adapter that `get_peft_model` makes."""


@torch.no_grad()
def trained_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """What training changes, one tensor at a time: all parameters, or the merged weights of the layers with an adapter.

    A collective where the ranks hold shards. A head that is tied to the embeddings comes once, under the embeddings' name.
    """
    if policy.adapted:
        for name, layer in _adapted_layers(policy).items():
            yield f"{name}.weight", _merged(layer)
        return
    for name, parameter in policy.base.named_parameters():
        yield name, whole(parameter.detach())


@torch.no_grad()
def all_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole model for `from_pretrained`, one tensor at a time; a collective where the ranks hold shards."""
    base = policy.base
    merged = {f"{name}.base_layer.weight": layer for name, layer in _adapted_layers(policy).items()} if policy.adapted else {}
    aliases = {name for name, _ in base.named_parameters(remove_duplicate=False)} - {name for name, _ in base.named_parameters()}
    for name, tensor in base.state_dict().items():
        if name in aliases or ".lora_" in name:
            continue
        yield name.replace(".base_layer.", "."), _merged(merged[name]) if name in merged else whole(tensor)


def _adapted_layers(policy: Policy) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in policy.base.named_modules() if isinstance(module, LoraLayer)}


def _merged(layer: Any) -> torch.Tensor:
    """Base weight + scaling * B A in the type of the master weights; never in place, so that nothing drifts."""
    weight = whole(layer.base_layer.weight)
    low, high = whole(layer.lora_A[ADAPTER].weight), whole(layer.lora_B[ADAPTER].weight)
    delta = (high.to(weight.dtype) @ low.to(weight.dtype)) * layer.scaling[ADAPTER]
    result: torch.Tensor = weight + (delta.t() if layer.fan_in_fan_out else delta)
    return result
