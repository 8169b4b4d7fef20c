"""An assistant turn taken apart: reasoning, visible text, and tool calls held against their schemas.

How a family of models writes its calls is a `ToolFormat` (`agentrl.rollout.tool_formats`). Whatever a model writes gives calls or
`Malformed` entries in order; nothing here raises. Reasoning is skipped: its spans, what precedes the first closing mark where the prompt
opened the span, and everything after an opening one that is never closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentrl.rollout.arguments import Unfit, coerce, shown
from agentrl.rollout.tool_formats.base import (
    INVALID_ARGUMENTS,
    MOST_CALLS,
    THINK,
    UNKNOWN_TOOL,
    Found,
    Malformed,
    ToolCall,
    ToolFormat,
    carried,
)
from agentrl.rollout.tool_formats.hermes import HERMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MOST_CALLS", "THINK", "AssistantTurn", "Malformed", "ToolCall", "check_call", "extract_calls", "read_calls", "read_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantTurn:
    """What an assistant turn says, to itself and to others."""

    reasoning: str
    """Text of the reasoning spans, a line between two."""
    content: str
    """The visible text without reasoning and without the calls that can be made; malformed ones stay in it."""
    calls: tuple[ToolCall | Malformed, ...]
    """In order."""


def call_id(turn: int, number: int) -> str:
    """The id of a call of a turn: nine letters and digits, as some templates demand."""
    return f"c{turn:05d}{number:03d}"


def read_turn(text: str, tools: Sequence[Mapping[str, Any]], *, thinking: bool = False, tool_format: ToolFormat = HERMES) -> AssistantTurn:
    """Take an assistant turn apart, arguments coerced to their declared types.

    Args:
        text: the decoded turn, without its end token.
        tools: OpenAI function schemas, with or without the `{"type": "function", "function": ...}` around them. Where there are none,
            nothing is a call.
        thinking: whether the prompt ended inside open reasoning.
        tool_format: how the model writes calls (`Renderer.tool_format`).
    """
    reader = _Reader(text, tool_format, calling=bool(tools))
    reader.read(thinking=thinking)
    found = [_checked(item, tools) for item in reader.found]
    content = text
    if reader.visible != [(0, len(text))]:
        kept = [(item.start, item.end) for item in found if isinstance(item.call, Malformed)]
        content = "".join(text[start:end] for start, end in sorted([*reader.visible, *kept])).strip()
    reasoning = "\n".join(filter(None, (text[start:end].strip() for start, end in reader.thought)))
    return AssistantTurn(reasoning=reasoning, content=content, calls=tuple(item.call for item in found))


def read_calls(
    text: str, tools: Sequence[Mapping[str, Any]], *, thinking: bool = False, tool_format: ToolFormat = HERMES
) -> list[ToolCall | Malformed]:
    """The calls of an assistant turn alone, as `read_turn` reads them."""
    return list(read_turn(text, tools, thinking=thinking, tool_format=tool_format).calls)


def extract_calls(text: str, *, thinking: bool = False, tool_format: ToolFormat = HERMES) -> list[ToolCall | Malformed]:
    """The calls of an assistant turn, in order, not yet held against any schema."""
    reader = _Reader(text, tool_format, calling=True)
    reader.read(thinking=thinking)
    return [item.call for item in reader.found]


def check_call(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> ToolCall | Malformed:
    """Hold a call against the schemas: the same call with coerced arguments, or what is wrong with it."""
    schemas = {tool["name"]: tool for tool in (entry.get("function", entry) for entry in tools)}
    tool = schemas.get(call.name)
    if tool is None:
        detail = f"there is no {shown(call.name)}; tools: {', '.join(schemas) or 'none'}"
        return Malformed(reason=UNKNOWN_TOOL, detail=detail, name=call.name)
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    try:
        arguments = coerce(schema, call.arguments)
    except Unfit as unfit:
        return Malformed(reason=INVALID_ARGUMENTS, detail=str(unfit), name=call.name)
    return carried(call.name, arguments)


def _checked(item: Found, tools: Sequence[Mapping[str, Any]]) -> Found:
    if isinstance(item.call, Malformed):
        return item
    return Found(call=check_call(item.call, tools), start=item.start, end=item.end)


class _Reader:
    """Goes through a turn once and sorts it into spans, `(start, end)` each."""

    def __init__(self, text: str, tool_format: ToolFormat, *, calling: bool) -> None:
        self.visible: list[tuple[int, int]] = []
        self.thought: list[tuple[int, int]] = []
        self.found: list[Found] = []
        self._text = text
        self._format = tool_format
        self._calling = calling
        self._at = 0
        """All before it is in a span."""
        self._spoken = False

    def read(self, *, thinking: bool) -> None:
        """Sort the whole text."""
        marks = _marks(self._format)
        closed = thinking
        if thinking:
            self._think(0, [end for _, end in self._format.thinking])
        search_from = self._at
        while (mark := marks.search(self._text, search_from)) is not None:
            if mark["think"]:
                self._show(mark.start())
                self._think(mark.end(), [end for start, end in self._format.thinking if start == mark["think"]])
                closed = True
            elif mark["end_think"] and not closed:  # the span began in the prompt: all before it was only considered
                self.visible, self.found, self.thought = [], [], [(0, mark.start())]
                self._at, closed, self._spoken = mark.end(), True, False
            elif mark["end_think"] or mark["punctuation"]:
                self._show(mark.start())
                self._at = mark.end()
            elif not self._call(mark.start()):
                search_from = max(mark.end(), mark.start() + 1)
                continue
            search_from = self._at
        self._show(len(self._text))

    def _think(self, start: int, closing: list[str]) -> None:
        """Take the reasoning from `start` to its closing mark, or to the end."""
        ends = [(at, at + len(mark)) for mark in closing if (at := self._text.find(mark, start)) >= 0]
        end, self._at = min(ends, default=(len(self._text), len(self._text)))
        self.thought.append((start, end))

    def _show(self, end: int) -> None:
        self.visible.append((self._at, end))

    def _call(self, start: int) -> bool:
        """Take the block of calls that opens at `start`; False where it is only text."""
        opening = self._format.opening.match(self._text, start)
        if not self._calling or opening is None or (not opening.group() and self._has_spoken(start)):
            return False
        self._show(start)
        block = self._format.read(self._text, opening)
        assert block.end > start, self._format.name  # else this place would be read for ever
        room = MOST_CALLS - len(self.found)
        self.found.extend(self._told(item) for item in block.found[:room])
        self._at = block.end
        if len(block.found) > room:
            fault = Malformed(reason="too many calls", detail=f"at most {MOST_CALLS} are made in one turn")
            self.found.append(Found(call=fault, start=block.found[room].start, end=block.end))
            self._calling = False
        return True

    def _told(self, item: Found) -> Found:
        """A call; one that is not well-formed says how one is written."""
        if not isinstance(item.call, Malformed) or item.call.reason in (UNKNOWN_TOOL, INVALID_ARGUMENTS):
            return item
        detail = "; ".join(filter(None, (item.call.detail, f"write {self._format.form}")))
        return replace(item, call=replace(item.call, detail=detail))

    def _has_spoken(self, end: int) -> bool:
        if not self._spoken:
            self._spoken = any(self._text[start:stop].strip() for start, stop in [*self.visible, (self._at, end)])
        return self._spoken


@lru_cache
def _marks(tool_format: ToolFormat) -> re.Pattern[str]:
    groups = {
        "think": [start for start, _ in tool_format.thinking],
        "end_think": [end for _, end in tool_format.thinking] if tool_format.implied else [],
        "punctuation": tool_format.punctuation,
    }
    named = [f"(?P<{name}>{'|'.join(map(re.escape, marks)) or '(?!)'})" for name, marks in groups.items()]
    return re.compile("|".join([*named, f"(?:{tool_format.opening.pattern})"]))
