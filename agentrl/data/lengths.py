"""Rows that are longer than a run allows: an error, left out, or cut at one end, and never cut to nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.data.faults import RowFault

if TYPE_CHECKING:
    from agentrl.config_data import DataConfig
    from agentrl.examples import Text

CUTS = "drop, keep_start or keep_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The texts of a row as they fit."""

    texts: tuple[Text, ...]
    """Empty where the row is left out."""
    cut: bool = False
    """Whether tokens were cut off."""


def fit(texts: tuple[Text, ...], data: DataConfig, lead: tuple[int, ...]) -> Fitted:
    """Bring the texts of a row to at most `data.max_length` tokens each, as `data.long_rows` says.

    `keep_start` cuts their ends off. `keep_end` cuts the start of the prompt off, as much of it for each text of the row, so that a pair
    keeps one prompt, and not what stands before it (`lead`, the beginning of text); without a prompt it cuts the start of the text. A row
    of which a text would have nothing left that is trained, or whose completion alone is too long for `keep_end`, is left out.

    Raises `RowFault` for `error`, with the length that the row has.
    """
    longest = max(len(text.ids) for text in texts)
    if data.max_length is None or longest <= data.max_length:
        return Fitted(texts=texts)
    if data.long_rows == "error":
        raise RowFault(
            field="row",
            expected=f"at most {data.max_length} tokens (data.max_length)",
            got=f"{longest} tokens",
            cure=f"raise data.max_length, or say what becomes of long rows with data.long_rows: {CUTS}",
        )
    if data.long_rows == "drop":
        return Fitted(texts=())
    if data.long_rows == "keep_start":
        kept = tuple(_cut(text, len(text.ids) - data.max_length, at_end=True) for text in texts)
    else:
        kept = _ends(texts, data.max_length, lead)
    usable = bool(kept) and all(_is_trained(text) for text in kept)
    return Fitted(texts=kept if usable else (), cut=usable)


def _ends(texts: tuple[Text, ...], most: int, lead: tuple[int, ...]) -> tuple[Text, ...]:
    over = max(len(text.ids) for text in texts) - most
    if not any(text.prompt_length for text in texts):
        return tuple(_cut(text, len(text.ids) - most, at_end=False) for text in texts)
    kept = len(lead) if all(text.ids[: len(lead)].tolist() == list(lead) for text in texts) else 0
    if over + kept > min(text.prompt_length for text in texts):
        return ()
    return tuple(_without(text, kept, kept + over) for text in texts)


def _cut(text: Text, over: int, *, at_end: bool) -> Text:
    if over <= 0:
        return text
    length = len(text.ids)
    return _without(text, length - over, length) if at_end else _without(text, 0, over)


def _without(text: Text, start: int, end: int) -> Text:
    """The text without the tokens from `start` to `end`."""
    left = np.r_[0:start, end : len(text.ids)]
    trained = text.trained[left]
    trained[:1] = False
    prompt = max(0, text.prompt_length - max(0, min(end, text.prompt_length) - start))
    labels = None if text.labels is None else text.labels[left]
    return replace(text, ids=text.ids[left], trained=trained, prompt_length=prompt, labels=labels)


def _is_trained(text: Text) -> bool:
    return bool(len(text.ids)) and (bool(text.trained.any()) if text.labels is None else not bool(np.isnan(text.labels).all()))
