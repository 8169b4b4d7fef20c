"""Tokenized rows of a dataset: what an offline step is made of, as groups of rollouts are what an online step is made of.

An `Example` is one row. Its texts take the places of a group's members: one for supervised data, a chosen and a rejected one for
preferences. Which of their tokens are trained was decided when the row was tokenized (`agentrl.data`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

DataKind = Literal["supervised", "preference", "unpaired", "stepwise", "prompts"]
"""What an offline objective learns from.

supervised: one text a row. prompts: what one begins with, of which nothing is trained before somebody writes the rest. preference: a chosen
and a rejected text, and for TPO a third, the gold one. unpaired: one text with reward 1 or 0. stepwise: one text with a label at the last
token of each of its steps.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Text:
    """A sequence of tokens of which some are trained; its constructor refuses what no loss could read."""

    ids: np.ndarray
    """[length] int32."""
    trained: np.ndarray
    """[length] bool: the tokens whose loss counts; never the first, which nothing predicts."""
    prompt_length: int = 0
    """Tokens before the completion; 0 where the whole text is one."""
    labels: np.ndarray | None = None
    """[length] float32, NaN where there is none: whether the step that ends here is right."""
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[trained] or [trained, k] each: what is known of the trained tokens before the step, such as what a teacher on servers said."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for columns of unequal lengths, or a first token that is trained."""
        columns = [self.trained] + ([] if self.labels is None else [self.labels])
        if any(len(column) != len(self.ids) for column in columns):
            raise ValueError(f"a text of {len(self.ids)} tokens has columns of {[len(column) for column in columns]}")
        if not len(self.ids) or self.trained[0]:
            raise ValueError("a text has a first token, and nothing predicts it: it cannot be trained")
        if not 0 <= self.prompt_length <= len(self.ids):
            raise ValueError(f"a prompt of {self.prompt_length} tokens in a text of {len(self.ids)}")

    @property
    def num_trained(self) -> int:
        """Tokens whose loss counts."""
        return int(np.count_nonzero(self.trained))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One row of a dataset, tokenized."""

    where: str
    """File and line or row, for messages."""
    texts: tuple[Text, ...]
    rewards: tuple[float, ...]
    """One a text: 1 and 0 for chosen and rejected, the label of an unpaired row, 0 where there is nothing to tell."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the row: `margin` between chosen and rejected, `weight`."""
    reference_logprobs: tuple[np.ndarray, ...] | None = None
    """[trained] float32 nats for each text, where they were computed before."""
    teacher: str | None = None
    """Name of the one teacher that the row is for; None: all of them."""
    ended: bool | None = None
    """Of a row that a teacher wrote: with a token that ends a text, and not with the room. None: the dataset wrote it."""
    joined: bool = False
    """The texts are one packed sequence: one sample, whose rows do not see each other."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.ids) for text in self.texts)

    @property
    def num_trained(self) -> int:
        """Trained tokens of all texts."""
        return sum(text.num_trained for text in self.texts)
