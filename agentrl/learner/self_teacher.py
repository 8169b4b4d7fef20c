"""The policy as its own teacher: as the run began, as it is now, or a running mean of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from agentrl.learner.loading import load_policy

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.learner.model import Policy


def own_teacher(who: str, policy: Policy, config: RunConfig, folder: str, device: torch.device, master: torch.dtype) -> Policy:
    """The model that teaches: the policy itself (`live`), or a frozen copy of it as the run begins (`base`, `ema`).

    A copy has the policy's adapter, if it trains one: a new one changes nothing at the start, and is what a running mean is taken of.
    """
    if who == "live":
        return policy
    adapts = config.learner.lora is not None and (who == "ema" or config.learner.lora.adapter is not None)
    model = load_policy(config, folder, device, master=master, trained=adapts)
    model.requires_grad_(False)
    return model


class Follower:
    """A teacher whose weights follow the policy's: teacher = (1 - rate) teacher + rate policy.

    Args:
        model: the teacher.
        rate: of one move; 1 takes the policy's weights over.
        every: steps between two moves.
    """

    def __init__(self, model: Policy, *, rate: float, every: int) -> None:
        self.model = model
        self._rate, self._every = rate, every

    @torch.no_grad()
    def follow(self, policy: Policy, step: int) -> None:
        """Move after the step of this number, from 1."""
        if step % self._every:
            return
        own = {name: one for name, one in policy.named_parameters() if one.requires_grad}
        for name, parameter in self.model.named_parameters():
            if name in own:
                parameter.lerp_(own[name].to(parameter.dtype), self._rate)
