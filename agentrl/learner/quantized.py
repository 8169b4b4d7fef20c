"""Frozen linear layers held in 4 or 8 bits, under an adapter in full precision (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

A layer keeps codes and gives its weight as a tensor when it is asked for; its forward pass multiplies with exactly that weight. Activations
are never rounded, so what a row scores does not depend on the rows beside it, and a merged copy is the model that was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

QUANTIZED = {"4bit": "NF4 in blocks of 64, their scales quantized again", "8bit": "int8 with a scale a row"}


class Codes(Protocol):
    """A matrix in few bits."""

    def weight(self) -> torch.Tensor:
        """The matrix that the codes stand for, in the type it had."""


class Int8Rows:
    """Each row as int8 multiples of 1/127 of its largest absolute value (Dettmers et al. 2022, arXiv:2208.07339, eq. 2, by rows)."""

    def __init__(self, weight: torch.Tensor) -> None:
        largest = weight.abs().amax(dim=1, keepdim=True)
        self.scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / 127
        self.codes = torch.round(weight / self.scale).to(torch.int8)

    def weight(self) -> torch.Tensor:
        """[out, in]."""
        return self.codes.to(self.scale.dtype) * self.scale


class Nf4Blocks:
    """Each block of 64 values as 16 quantiles of a normal distribution, by bitsandbytes (arXiv:2305.14314, section 3)."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._functional: Any = _bitsandbytes().functional
        self._dtype = weight.dtype
        kept = weight.float() if weight.dtype == torch.float64 else weight
        self.codes, self.state = self._functional.quantize_4bit(kept.contiguous(), quant_type="nf4", compress_statistics=True)

    def weight(self) -> torch.Tensor:
        """[out, in]."""
        found: torch.Tensor = self._functional.dequantize_4bit(self.codes, self.state)
        return found.to(self._dtype)


class QuantizedLinear(torch.nn.Linear):
    """A linear layer whose weight is held as codes; frozen."""

    def __init__(self, layer: torch.nn.Linear, kind: str) -> None:
        torch.nn.Module.__init__(self)  # no weight of its own: the property below gives it
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.codes: Codes = Nf4Blocks(layer.weight.detach()) if kind == "4bit" else Int8Rows(layer.weight.detach())
        self.bias = layer.bias

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """[out, in] what the codes stand for; made anew each time."""
        return self.codes.weight()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., out]; no copy of the weight outlives the call."""
        found: torch.Tensor = _Product.apply(hidden, self.codes)  # type: ignore[no-untyped-call]
        bias: torch.Tensor | None = self.bias
        return found if bias is None else found + bias.to(found.dtype)


class _Product(torch.autograd.Function):
    """hidden @ weight.T, which keeps the codes for the backward pass and not the weight."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, codes: Codes) -> torch.Tensor:
        ctx.codes, ctx.dtype = codes, hidden.dtype
        return torch.nn.functional.linear(hidden, codes.weight())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (grad,) = grads
        return (grad @ ctx.codes.weight().to(grad.dtype)).to(ctx.dtype), None


def quantize(
    model: torch.nn.Module, kind: str, device: torch.device, *, skipped: Collection[torch.nn.Module], names: Collection[str]
) -> int:
    """Replace the linear layers of a model in place; returns how many.

    Args:
        model: its layers are replaced one by one, so that the whole is never there twice.
        kind: a key of `QUANTIZED`.
        device: where codes are made and kept.
        skipped: layers that stay as they are, such as the output layer.
        names: last parts of the names of layers that stay, such as those trained whole.

    Raises `ConfigError` where bitsandbytes is needed and not there.
    """
    if kind == "4bit":
        _bitsandbytes()
    kept = set(map(id, skipped))
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and id(child) not in kept and name not in names:
                setattr(parent, name, QuantizedLinear(child.to(device), kind))
                replaced += 1
    return replaced


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except (ImportError, RuntimeError, OSError) as error:  # its native library may not load on this machine
        raise ConfigError(
            f"learner.lora.quantize=4bit needs bitsandbytes, which does not import here: {error}; `pip install bitsandbytes`, or set "
            "learner.lora.quantize to 8bit, which needs nothing, or to null"
        ) from error
    return bitsandbytes
