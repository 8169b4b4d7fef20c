"""The answer, or the move, in what a model says to an environment of another library."""

from __future__ import annotations

from typing import Literal

from agentrl.rewards.extract import answer_text, spoken_text

Extraction = Literal["auto", "tags", "text"]
"""`tags`: the last `<answer>...</answer>`; `auto`: that, else the last box, `####` line, "answer is" or line; `text`: all of it."""

_OPENS, _CLOSES = "<answer>", "</answer>"


def found_answer(text: str, extract: Extraction) -> str | None:
    """The answer in a text, without its thinking; None where there is none, or only white space."""
    spoken = spoken_text(text)
    if spoken is None:
        return None
    if extract == "text":
        return spoken.strip() or None
    tagged = _last_tagged(spoken)
    if tagged is not None:
        return tagged.strip() or None
    return None if extract == "tags" else answer_text(spoken)


def _last_tagged(text: str) -> str | None:
    """What the last closed tag encloses; one pass, however many are opened and never closed."""
    found, start = None, text.find(_OPENS)
    while start >= 0 and (end := text.find(_CLOSES, start + len(_OPENS))) >= 0:
        found = text[start + len(_OPENS) : end]
        start = text.find(_OPENS, end)
    return found
