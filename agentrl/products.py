"""The float32 matrix product that is fastest on a CPU, for those who count operations."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@cache
def onednn_product() -> Callable[..., torch.Tensor] | None:
    """`f(values, weight, bias, "none", [], "")` for values x weight^T + bias, where this torch has it.

    It is what torch.compile puts into float32 CPU code, and not part of torch's public interface.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        product: Any = torch.ops.mkldnn._linear_pointwise
        product(torch.ones(2, 4), torch.ones(3, 4), torch.ones(3), "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    result: Callable[..., torch.Tensor] = product
    return result


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Values [rows, in] x weight^T [in, out] + bias, without a gradient; oneDNN's is 8% faster on some 1,000 rows (measured, AMD Zen 4)."""
    product = onednn_product() if values.dtype == torch.float32 and values.device.type == "cpu" else None
    if product is not None:
        return product(values, weight, bias, "none", [], "")
    return values @ weight.t() if bias is None else torch.addmm(bias, values, weight.t())
