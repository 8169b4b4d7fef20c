"""Arrays on their way to the device on which a model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor of its own type there.

    To a GPU it goes from pinned memory, and nobody waits: a plain copy waits for all that the GPU has been given to do, which then has
    nothing to do while the next micro-batch is packed.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
