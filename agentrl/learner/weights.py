"""The policy's weights as others know them: under the names of the model's own state dict, whole, with the adapter merged in a copy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import torch

from agentrl.learner.adapters import ADAPTER, adapted_layers, is_adapters, saved_modules, saved_name
from agentrl.learner.quantized import QuantizedLinear
from agentrl.learner.ranks import whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel

    from agentrl.learner.model import Policy


@torch.no_grad()
def trained_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """What training changes, one tensor at a time: all parameters, or the merged weights of the layers with an adapter.

    A collective where the ranks hold shards. A head that is tied to the embeddings comes once, under the embeddings' name. Over a base in
    few bits it is all weights: an engine that read the model's own files holds none of them as they are trained.
    """
    if policy.adapted and not is_quantized(policy):
        for name, layer in adapted_layers(policy.base).items():
            yield f"{name}.weight", _merged(layer)
        for name, module in saved_modules(policy.base):
            for part, tensor in module.state_dict().items():
                yield f"{name}.{part}", whole(tensor)
    elif policy.adapted:
        yield from all_weights(policy)
    else:
        for name, parameter in policy.base.named_parameters():
            yield name, whole(parameter.detach())


@torch.no_grad()
def all_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole model for `from_pretrained`, one tensor at a time; a collective where the ranks hold shards."""
    base = policy.base
    layers = adapted_layers(base) if policy.adapted else {}
    aliases = {name for name, _ in base.named_parameters(remove_duplicate=False)} - {name for name, _ in base.named_parameters()}
    for name, tensor in base.state_dict().items():
        if name in aliases or ".lora_" in name or ".original_module." in name:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        yield _plain_name(name), whole(tensor) if layer is None else _merged(layer)
    for name, module in quantized_layers(base):
        layer = layers.get(name.removesuffix(".base_layer"))
        yield f"{_plain_name(name)}.weight", module.weight if layer is None else _merged(layer)


def is_quantized(policy: Policy) -> bool:
    """Whether layers of the model are held in few bits."""
    return any(True for _ in quantized_layers(policy.base))


def quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """The layers in few bits, by name; their weights are in no state dict."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def _plain_name(name: str) -> str:
    """A name in a model with an adapter as it is without one."""
    return f"{name}.".replace(".base_layer.", ".").replace(f".modules_to_save.{ADAPTER}.", ".").removesuffix(".")


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
        if is_adapters(name):
            yield saved_name(name), whole(tensor)


def _merged(layer: Any) -> torch.Tensor:
    """Base weight + scaling * B A in the type of the master weights, each row then of its trained length where the adapter is a DoRA.

    Never in place, so that nothing drifts. DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5): m (W + s B A) / ||W + s B A||, norms over the
    inputs of each output.
    """
    weight = whole(layer.base_layer.weight)
    low, high = whole(layer.lora_A[ADAPTER].weight), whole(layer.lora_B[ADAPTER].weight)
    delta = (high.to(weight.dtype) @ low.to(weight.dtype)) * layer.scaling[ADAPTER]
    result: torch.Tensor = weight + (delta.t() if layer.fan_in_fan_out else delta)
    if ADAPTER not in layer.lora_magnitude_vector:
        return result
    lengths = whole(layer.lora_magnitude_vector[ADAPTER].weight).to(result.dtype)
    outputs = 1 if layer.fan_in_fan_out else 0
    scale = lengths / torch.linalg.norm(result, dim=1 - outputs)
    scaled: torch.Tensor = result * scale.unsqueeze(1 - outputs)
    return scaled
