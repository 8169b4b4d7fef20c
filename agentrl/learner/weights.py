"""The policy's weights as others know them: under the names of the model's own state dict, whole, with the adapter merged in a copy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import torch

from agentrl.learner.ranks import whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel

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


def adapter_config(policy: Policy) -> dict[str, Any]:
    """The adapter's configuration as peft writes it to `adapter_config.json`, in JSON values; raises `ValueError` without an adapter."""
    if not policy.adapted:
        raise ValueError("the policy has no adapter")
    config: Any = cast("PeftModel", policy.model).peft_config[ADAPTER]
    plain = config.to_dict() | {"inference_mode": True, "target_modules": sorted(config.target_modules or ())}
    values: dict[str, Any] = json.loads(json.dumps(plain, default=_json_value))
    return values


def _json_value(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


@torch.no_grad()
def adapter_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """The adapter's own tensors, by the names that peft saves them under; a collective where the ranks hold shards."""
    for name, tensor in policy.model.state_dict().items():
        if ".lora_" in name:
            yield name.replace(f".{ADAPTER}.", "."), whole(tensor)


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
