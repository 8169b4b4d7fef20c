"""A running average of the trained weights, in float32 beside them: plain (EMA), or with its lag corrected (BEMA).

Shards where the ranks hold shards. What it is follows from the weights of each step alone, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from agentrl.learner.standin import copied, standing_in, trained_parameters

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentrl.config_learner import EmaConfig
    from agentrl.learner.model import Policy

EVERY = {"ema": 1, "bema": 400}
"""Steps between two updates where the run file says nothing."""
AVERAGE, MEAN, START = "average", "mean", "start"
"""The averages by name; `mean` and `start` are BEMA's."""


class Averages:
    """The average of a policy's trained parameters."""

    def __init__(self, config: EmaConfig, policy: Policy) -> None:
        """Begin from the weights as they are."""
        self._config, self._policy = config, policy
        self.values: dict[str, dict[str, torch.Tensor]] = {}
        """Kind of average -> parameter's name -> value."""
        self.begin()

    def begin(self) -> None:
        """Begin anew from the weights as they are."""
        kinds = (AVERAGE,) if self._config.kind == "ema" else (AVERAGE, MEAN, START)
        self.values = {kind: copied(self._policy, torch.float32) for kind in kinds}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, which counts from 1."""
        config = self._config
        if step <= config.after:
            self.begin()  # until then the average is what the weights are
        elif (step - config.after) % (config.every or EVERY[config.kind]) == 0:
            if config.kind == "ema":
                self._take_in(1.0 - config.decay)
            else:
                self._correct(step)

    def _take_in(self, share: float) -> None:
        for name, parameter in trained_parameters(self._policy).items():
            average = self.values[AVERAGE][name]
            average.lerp_(parameter.detach().to(average.dtype), share)

    def _correct(self, step: int) -> None:
        """One update of BEMA (Block and Zhang 2025, arXiv:2508.00180, algorithm 1).

        mean = (1 - b) mean + b weights; average = mean + a (weights - start), with b = max((lag + m t)^-ema_power, min) and
        a = (lag + m t)^-bias_power.
        """
        config = self._config
        age = config.lag + config.multiplier * step
        share = max(age**-config.ema_power, config.min_ema_multiplier)
        for name, parameter in trained_parameters(self._policy).items():
            average, mean, start = (self.values[kind][name] for kind in (AVERAGE, MEAN, START))
            weight = parameter.detach().to(mean.dtype)
            mean.mul_(1 - share).add_(weight, alpha=share)
            average.copy_(mean + (weight - start) * age**-config.bias_power)

    def applied(self) -> AbstractContextManager[None]:
        """Compute with the average in the place of the weights, which come back bit for bit."""
        return standing_in(self._policy, self.values[AVERAGE])

    def evaluated(self) -> AbstractContextManager[None]:
        """The same where the run file has the average evaluated."""
        return self.applied() if self._config.evaluate else contextlib.nullcontext()
