"""What a text answers: the one extractor that training and evaluation share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

THINK, END_THINK = "<think>", "</think>"

_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\(?!\\(?:boxed|fbox)\s*\{).|[{}]", re.DOTALL)
"""A box that opens, an escaped character, a brace."""
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_MARKED = re.compile(r"####[ \t]*([^\n]*)")
_SAID = re.compile(r"\banswer\b(?:\s+(?!is\b)\w+){0,4}?\s*(?:\bis\b|:|=)[\s:]*([^\n]+)", re.IGNORECASE)
_EMPHASIS = re.compile(r"^\*\*(.+?)\*\*(?=[.,;]?$)")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[.?]$")


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Text of a completion in either of TRL's forms: a string, or messages of which the last assistant turn counts."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = said[-1].get("content") if said else None
    if isinstance(content, list):  # parts, of which only the texts can be read
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def answer_text(text: str) -> str | None:
    r"""The answer in a text, or None where there is none.

    Thinking is skipped. Then the first of these that occurs decides: the last complete `\boxed{...}` or `\fbox{...}` (only unclosed
    ones: no answer), the line after the last `####`, what follows the last "answer is" or "answer:", the last line that is not empty.
    """
    spoken = spoken_text(text)
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
    """Content of the last box whose braces balance, the inner one of nested ones; None where there is none. Escaped braces do not count.

    One pass over the text, however many boxes are opened in it.
    """
    opened: list[int] = []
    last = (-1, -1)
    for match in _BRACES.finditer(text):
        if match[0] == "{":
            opened.append(-1)
        elif match[1]:
            opened.append(match.end())
        elif match[0] == "}" and opened:
            last = max(last, (opened.pop(), match.start()))
    content = text[slice(*last)].strip() if last[0] >= 0 else ""
    return None if _BOX_COMMAND.search(content) else content or None


def spoken_text(text: str) -> str | None:
    """What comes after the thinking; None where the thinking never ends."""
    spoken = text.rpartition(END_THINK)[2]
    return None if THINK in spoken else spoken


def _sentence(text: str) -> str:
    """Up to the end of the sentence, without emphasis marks."""
    text = text.replace("**", "").strip()
    end = _SENTENCE_END.search(text)
    return (text[: end.start()] if end else text).strip()
