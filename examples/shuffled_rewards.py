"""A control run: GRPO with each group's rewards handed out to its completions at random, so that there is nothing to learn.

    agentrl train examples/quickstart.yaml --set 'imports=["examples/shuffled_rewards.py"]' --set objective=grpo_shuffled

It is also how an objective of one's own is registered: a config and a row of functions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl import objectives
from agentrl.objectives.credit import compared_rewards
from agentrl.objectives.grpo import GRPO, GRPOConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

_draw = np.random.default_rng(0)


class ShuffledConfig(GRPOConfig):
    """GRPO's options."""

    name: Literal["grpo_shuffled"] = "grpo_shuffled"  # type: ignore[assignment]  # every objective has its own name


def shuffled_advantages(groups: Sequence[objectives.GroupSignals], config: ShuffledConfig) -> list[np.ndarray | objectives.Credit]:
    """GRPO's advantages of permuted rewards."""
    return compared_rewards([replace(group, rewards=_draw.permutation(group.rewards)) for group in groups], config)


objectives.register(replace(GRPO, name="grpo_shuffled", config=ShuffledConfig, advantages=shuffled_advantages))
