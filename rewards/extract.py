"""What a text answers: the one extractor that training and evaluation share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

THINK, END_THINK = "<think>", "</think>"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_MARKED = re.compile(r"####[ \t]*([^\n]*)")
_SAID = re.compile(r"\banswer\b(?:\s+(?!is\b)\w+){0,4}?\s*(?:\bis\b|:|=)[\s:]*([^\n]+)", re.IGNORECASE)
_EMPHASIS = re.compile(r"^\*\*(.+?)\*\*(?=[.,;]?$)")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[.?]$")


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Text of a completion in either of TRL's forms: a string, or messages of which the last assistant turn counts."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message["role"] == "assistant"]
    return str(said[-1].get("content") or "") if said else ""


def answer_text(text: str) -> str | None:
    r"""The answer in a text, or None where there is none.

    Thinking is skipped. Then the first of these that occurs decides: the last complete `\boxed{...}` or `\fbox{...}` (only unclosed
    ones: no answer), the line after the last `####`, what follows the last "answer is" or "answer:", the last line that is not empty.
    """
    spoken = _spoken(text)
    if spoken is None:
        return None
    if _BOX_COMMAND.search(spoken):
        return last_box(spoken)
    for pattern in (_MARKED, _SAID):
        found = pattern.findall(spoken)
        if found:
            return _sentence(found[-1]) or None
    lines = [line.strip() for line in spoken.splitlines() if line.strip()]
    return _EMPHASIS.sub(r"\1", lines[-1]) if lines else None


def last_box(text: str) -> str | None:
    """Content of the last box whose braces balance, None where there is none; escaped braces do not count."""
    content = None
    at = 0
    while (opening := _BOX.search(text, at)) is not None:
        end = _closing_brace(text, opening.end())
        if end is None:
            at = opening.end()
            continue
        content, at = text[opening.end() : end].strip(), end + 1
    if content is not None and _BOX_COMMAND.search(content):  # a box in a box
        return last_box(content)
    return content or None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    at = start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None


def _spoken(text: str) -> str | None:
    """What comes after the thinking; None where the thinking never ends."""
    spoken = text.rpartition(END_THINK)[2]
    return None if THINK in spoken else spoken


def _sentence(text: str) -> str:
    """Up to the end of the sentence, without emphasis marks."""
    text = text.replace("**", "").strip()
    end = _SENTENCE_END.search(text)
    return (text[: end.start()] if end else text).strip()
