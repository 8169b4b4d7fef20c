"""What all written forms of tool calls share: the records, the shape of a format, and JSON read with its place in the text.

Nothing here raises on what a model wrote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from agentrl.rollout.arguments import decoded, kind_of, refuse_constant
from agentrl.rollout.user_values import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_CALLS = 128
"""A turn that repeats a mark until its tokens are used up is not answered ten thousand times."""
THINK, END_THINK = "<think>", "</think>"
UNKNOWN_TOOL, INVALID_ARGUMENTS = "unknown tool", "invalid arguments"
"""Reasons of calls that are written as they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that can be made."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """A call that cannot be made."""

    reason: str
    """The kind of mistake, out of a small set: `invalid JSON`, `unclosed <tool_call>`, `unknown tool`, `invalid arguments`, ..."""
    detail: str = ""
    """What exactly is wrong, for the model to read."""
    name: str = ""
    """The tool that was meant, where that is known."""

    @property
    def message(self) -> str:
        """The observation that the model gets instead of a result."""
        return clean(f"error: {self.reason}: {self.detail}" if self.detail else f"error: {self.reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A call and where it is written: `text[start:end]`."""

    call: ToolCall | Malformed
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a format read from one opening on."""

    found: tuple[Found, ...]
    """In order. What surrounds them in the block is punctuation of the format."""
    end: int
    """Where reading goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family of models writes its calls."""

    name: str
    form: str
    """One well-formed call, quoted to a model that wrote none; `agentrl.rollout.toolcalls` adds it to what is said of the mistake."""
    opening: re.Pattern[str]
    """Where a block of calls begins. A match of no width is a call without a marker, which must begin the visible text."""
    read: Callable[[str, re.Match[str]], Block]
    """Reads the block whose opening was matched in the text."""
    write: Callable[[Sequence[ToolCall]], str]
    """The calls as a model of the family writes them."""
    thinking: tuple[tuple[str, str], ...] = ((THINK, END_THINK),)
    """What opens and closes reasoning, in pairs."""
    implied: bool = True
    """Whether a closing mark alone tells that the prompt had opened the reasoning."""
    ends_turn: str = ""
    """A mark at the end of a call that is also the end token of its turn."""
    punctuation: tuple[str, ...] = ()
    """Marks of the format that are no text: those around an answer."""


_decoder = json.JSONDecoder(parse_constant=refuse_constant)


def read_json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends. Raises `ValueError` or `RecursionError`."""
    # decoding from here, not cutting at the next marker: that may stand inside a string argument
    return _decoder.raw_decode(text, at)


def json_fault(error: ValueError | RecursionError) -> str:
    """What is wrong with some JSON, in few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def skip_space(text: str, at: int) -> int:
    """The place of the first character from `at` on that JSON does not count as space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def object_call(value: Any, *, name_key: str = "name", key: str = "arguments") -> ToolCall | Malformed:
    """A decoded `{name_key: ..., key: {...}}` as a call."""
    if not isinstance(value, dict):
        return Malformed(reason="not an object", detail=f"got {kind_of(value)}")
    name = value.get(name_key)
    if not isinstance(name, str) or not name:
        return Malformed(reason="missing name")
    if key not in value:
        return Malformed(reason=f"missing {key}", name=clean(name))
    return arguments_call(name, value[key])


def arguments_call(name: str, arguments: Any) -> ToolCall | Malformed:
    """A call with decoded arguments, which must be an object; one that was encoded twice is decoded again."""
    if isinstance(arguments, str):
        arguments = decoded(arguments)
    if not isinstance(arguments, dict):
        return Malformed(reason="arguments are not an object", detail=f"got {kind_of(arguments)}", name=clean(name))
    return carried(name, arguments)


def carried(name: str, arguments: dict[str, Any]) -> ToolCall | Malformed:
    """Refuse what no message between processes can carry: lone surrogates, numbers beyond 64 bits, infinities."""
    try:
        msgspec.msgpack.encode([name, arguments])
        json.dumps(arguments, allow_nan=False)
    except (UnicodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
        return Malformed(reason=INVALID_ARGUMENTS, detail=clean(str(error)), name=clean(name))
    return ToolCall(name=name, arguments=arguments)


def single(call: ToolCall | Malformed, start: int, end: int) -> Block:
    """A block that is one call, `text[start:end]`."""
    return Block(found=(Found(call=call, start=start, end=end),), end=end)


def resume(text: str, at: int, close: str, opening: re.Pattern[str]) -> int:
    """Where to go on behind a fault at `at`: after the closing mark, or before the next opening one, whichever comes first."""
    border = _border(close, opening).search(text, at)
    if border is None:
        return len(text)
    return border.end() if close and border.group() == close else border.start()


@lru_cache
def _border(close: str, opening: re.Pattern[str]) -> re.Pattern[str]:
    # one search for both: a text that repeats one of them for ever must not be searched to its end for the other each time
    return re.compile(f"{re.escape(close)}|{opening.pattern}" if close else opening.pattern)


def as_json(value: Any) -> str:
    """A value as JSON, letters of all scripts as they are."""
    return json.dumps(value, ensure_ascii=False)


def as_text(value: Any) -> str:
    """A value as it stands between tags: a string as it is, all else as JSON."""
    return value if isinstance(value, str) else as_json(value)
