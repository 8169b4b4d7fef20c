"""Process reward models: how likely each step of an answer is right, learned from labels of steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses
from agentrl.objectives.needs import Needs
from agentrl.objectives.sft import no_advantages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.examples import Example, Text
    from agentrl.objectives.losses import TokenBatch


class ProcessRewardModelConfig(ObjectiveConfig):
    """Options of `process_reward_model`."""

    name: Literal["process_reward_model"] = "process_reward_model"
    last_step_only: bool = False
    """Learn the label of the last step of each row alone, which makes it a judge of whole answers."""


def labelled(examples: Sequence[Example], config: ProcessRewardModelConfig) -> Sequence[Example]:
    """The examples with the labels that are learned."""
    if not config.last_step_only:
        return examples
    return [replace(one, texts=tuple(map(_last_label, one.texts))) for one in examples]


def _last_label(text: Text) -> Text:
    assert text.labels is not None
    places = np.flatnonzero(~np.isnan(text.labels))
    labels = np.full(len(text.labels), np.nan, dtype=np.float32)
    labels[places[-1:]] = text.labels[places[-1:]]
    return replace(text, labels=labels)


def step_labels(batch: TokenBatch, config: ProcessRewardModelConfig) -> Losses:
    """-log P(label) at the last token of each step.

    Args:
        batch: outputs [tokens, 2], logits of wrong and right; columns `label` [tokens], 0 or 1. Its tokens are the ends of steps.
        config: its choice of steps was made before.

    Returns: loss [tokens]. Metrics [tokens]: `accuracy`, the share of steps whose likelier label is the given one.

    Source: Lightman et al. 2023, arXiv:2305.20050, sec. 2.6; labels as in Uesato et al. 2022, arXiv:2211.14275.
    """
    import torch

    assert batch.outputs is not None
    labels = batch.columns["label"].long()
    loss = torch.nn.functional.cross_entropy(batch.outputs, labels, reduction="none")
    return Losses(per="token", loss=loss, metrics={"accuracy": (batch.outputs.detach().argmax(-1) == labels).to(loss.dtype)})


PROCESS_REWARD_MODEL = Objective(
    name="process_reward_model",
    config=ProcessRewardModelConfig,
    advantages=no_advantages,
    loss=step_labels,
    needs=lambda config: Needs(output="labels"),
    normalization=lambda config: "token_mean",
    data="stepwise",
    prepare=labelled,
    formula="-log P(label) at the last token of each step, mean over all labelled steps of the optimizer step",
    source="arXiv:2305.20050, sec. 2.6; arXiv:2211.14275",
    summary="A process reward model, from answers in steps of which each has a label.",
)
