"""The code in an answer, by one rule.

1. Thinking is skipped; where it never ends there is no code.
2. Of the fenced blocks (three or more backticks or tildes, alone at the start of a line but for the language) those count that are closed
   and whose language is Python or not named. The last that defines what is asked for is the code; where none does, the last of all.
3. A text without any fence is code as a whole.
4. A text with none but unclosed fences, or only other languages, has no code: an answer that was cut off is not guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentrl.rewards.extract import spoken_text

LANGUAGES = ("", "python", "python3", "py")

_FENCE = re.compile(r"^(?P<indent> {0,3})(?P<marks>`{3,}+|~{3,}+)[ \t]*+(?P<language>[^\s`{]*+)(?P<rest>[^\n`]*+)$")
"""Possessive, as a line of tildes would otherwise be tried in as many ways as the cube of its length."""
_LINE_END = re.compile(r"\r\n?|\n")
"""As Python's own: a form feed or a line separator in a text of the code ends no line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A closed fenced block."""

    language: str
    """In lower case; empty where not named."""
    code: str


def extract_code(text: str, defines: str | None = None) -> str | None:
    """The code in a text, None where there is none.

    Args:
        text: of an answer.
        defines: name of a function or class that the code should define at its top level; settles which of several blocks is meant.
    """
    spoken = spoken_text(text)
    if spoken is None:
        return None
    found = blocks(spoken)
    if found is None:
        return spoken
    codes = [block.code for block in found if block.language in LANGUAGES]
    defining = [code for code in codes if defines and defines_name(code, defines)]
    meant = defining or codes
    return meant[-1] if meant else None


def blocks(text: str) -> list[Block] | None:
    """The closed fenced blocks of a text, in order; None where the text has no fence at all."""
    found: list[Block] = []
    opening: re.Match[str] | None = None
    inside: list[str] = []
    fences = 0
    for line in _LINE_END.split(text):
        fence = _FENCE.match(line)
        fences += fence is not None
        if opening is None:
            opening, inside = fence, []
        elif fence and _closes(opening, fence):
            found.append(
                Block(language=opening["language"].lower(), code="".join(f"{each}\n" for each in _outdented(inside, opening["indent"])))
            )
            opening = None
        else:
            inside.append(line)
    return found if fences else None


def _outdented(lines: list[str], indent: str) -> list[str]:
    """Lines without the indentation of their fence, in a list say, if all have it."""
    whole = all(line.startswith(indent) for line in lines if line.strip())
    return [line[len(indent) :] for line in lines] if whole else lines


def defines_name(code: str, name: str) -> bool:
    """Whether code defines a function or class of this name at its top level, or assigns it; also where it does not parse."""
    return (
        re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=(?!=)", code, re.MULTILINE)
        is not None
    )


def _closes(opening: re.Match[str], fence: re.Match[str]) -> bool:
    """A fence closes with the marks that it was opened with, at least as many, and nothing after them."""
    same = fence["marks"][0] == opening["marks"][0] and len(fence["marks"]) >= len(opening["marks"])
    return same and not fence["language"] and not fence["rest"].strip()
