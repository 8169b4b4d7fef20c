"""Simple self-distillation: a policy that is taken at its word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.signals import Credit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.losses import TokenBatch
    from agentrl.objectives.signals import GroupSignals

STUB_CHARS = 10
"""A completion of one line and fewer characters is a stub (arXiv:2604.01193 filters such; the number is that of TRL's trainer)."""


class SSDConfig(ObjectiveConfig):
    """Options of SSD; how samples are drawn is the run file's `sampling`."""

    name: Literal["ssd"] = "ssd"
    filter_empty: bool = True
    """Learn nothing of completions that are empty, or of one line and fewer than 10 characters."""


def whole_sentences(groups: Sequence[GroupSignals], config: SSDConfig) -> list[Credit]:
    """All rollouts count alike; stubs not at all, where they are filtered."""
    return [
        Credit(
            advantages=np.zeros(len(group.rewards)),
            trained=np.array([not (config.filter_empty and is_stub(member.text)) for member in group.members], dtype=bool),
        )
        for group in groups
    ]


def is_stub(text: str) -> bool:
    """Whether a completion is empty, or of one line and hardly anything."""
    said = text.strip()
    return not said or ("\n" not in said and len(said) < STUB_CHARS)


def ssd_losses(batch: TokenBatch, config: SSDConfig) -> Losses:
    """-log policy of each token that the policy sampled, at temperature 1, whatever it was sampled at.

    Args:
        batch: logprobs [tokens].
        config: which rollouts are here.

    Returns: loss [tokens]. Metrics [tokens]: `ssd/cross_entropy_loss`.

    Source: Zhang et al. 2026, arXiv:2604.01193.
    """
    return Losses(per="token", loss=-batch.logprobs, metrics={"ssd/cross_entropy_loss": -batch.logprobs.detach()})


SSD = Objective(
    name="ssd",
    config=SSDConfig,
    advantages=whole_sentences,
    loss=ssd_losses,
    needs=lambda config: Needs(rewards=False, texts=True, temperature=1.0),
    normalization=lambda config: "token_mean",
    formula="-log policy of what it sampled, at temperature 1; mean over all tokens of the step",
    source="Zhang et al. 2026, arXiv:2604.01193",
    summary="Learns its own unverified samples as they are, drawn at another temperature than it is used at.",
)
