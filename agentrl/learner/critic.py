"""A value model of its own: the policy's architecture and first weights, with a linear head from hidden states to values."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from agentrl.learner.attention import selected
from agentrl.learner.loading import load_policy
from agentrl.learner.model import value_head

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.learner.model import Policy
    from agentrl.learner.packing import Pack


class ValueModel(torch.nn.Module):
    """Values of the states before the trained tokens of a pack."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.decoder = policy.base.get_decoder()
        self.head = value_head(policy.base)
        self.dtype = policy.dtype

    def forward(self, packed: Pack) -> torch.Tensor:
        """[trained] float32 or better."""
        half = self.dtype == torch.bfloat16
        with torch.autocast(packed.ids.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            out = self.decoder(input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, segments=packed.segments)
        hidden = selected(out.last_hidden_state[0], packed.sources, shared=packed.segments.shared)
        values: torch.Tensor = self.head(hidden.to(self.head.weight.dtype))[:, 0]
        return values


def load_critic(config: RunConfig, folder: str, device: torch.device, *, master: torch.dtype) -> ValueModel:
    """A value model that starts from the weights of `folder`; raises `ConfigError` as `load_policy` does."""
    bare = config.model_copy(update={"learner": config.learner.model_copy(update={"lora": None})})
    return ValueModel(load_policy(bare, folder, device, master=master, trained=True))
