"""The optimizer and its learning rate, a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from agentrl.config_learner import LearnerConfig


def learning_rate(config: LearnerConfig, step: int, steps: int) -> float:
    """Rate of the optimizer step number `step`, from 0, of `steps`.

    It rises linearly over `warmup_steps`, the first step taking 1 / warmup_steps of the peak, then decays to `min_lr_ratio` of it at the
    last step.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * left)


def adamw(model: torch.nn.Module, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) over the trainable parameters; norms, biases and embeddings are not decayed."""
    embeddings = {parameter for module in model.modules() if isinstance(module, torch.nn.Embedding) for parameter in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1 and parameter not in embeddings]
    kept = [parameter for parameter in trained if parameter.ndim <= 1 or parameter in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
