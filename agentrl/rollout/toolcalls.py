"""Tool calls out of the text of an assistant turn.

Two forms are understood between `<tool_call>` and `</tool_call>`: `{"name": ..., "arguments": {...}}` (Hermes, Qwen) and
`<function=NAME><parameter=KEY>value</parameter></function>` (Qwen3-Coder). Whatever a model writes gives calls or `Malformed`
entries in order; nothing here raises.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agentrl.rollout.arguments import Unfit, coerce, decoded, kind_of, refuse_constant, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CALL, END_CALL = "<tool_call>", "</tool_call>"
THINK, END_THINK = "<think>", "</think>"


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
        return _plain(f"error: {self.reason}: {self.detail}" if self.detail else f"error: {self.reason}")


def read_calls(text: str, tools: Sequence[Mapping[str, Any]], *, thinking: bool = False) -> list[ToolCall | Malformed]:
    """The calls of an assistant turn, in order, arguments coerced to their declared types.

    Args:
        text: the decoded turn, without its end token.
        tools: OpenAI function schemas, with or without the `{"type": "function", "function": ...}` around them.
        thinking: whether the prompt ended inside an open `<think>`.
    """
    return [call if isinstance(call, Malformed) else check_call(call, tools) for call in extract_calls(text, thinking=thinking)]


_MARK = re.compile(f"{THINK}|{END_THINK}|{CALL}")
_BORDER = re.compile(f"{THINK}|{CALL}|{END_CALL}")


def extract_calls(text: str, *, thinking: bool = False) -> list[ToolCall | Malformed]:
    """The calls of an assistant turn, in order, not yet held against any schema.

    Reasoning is skipped: `<think>` spans, what precedes the first `</think>` where the prompt opened the span, and everything after a
    `<think>` that is never closed.
    """
    calls: list[ToolCall | Malformed] = []
    at = 0
    closed_thinking = False
    if thinking:
        at, closed_thinking = _after(text, END_THINK, 0), True
    while (mark := _MARK.search(text, at)) is not None:
        if mark.group() == THINK:
            at, closed_thinking = _after(text, END_THINK, mark.end()), True
        elif mark.group() == END_THINK:
            if not closed_thinking:  # the span began in the prompt: all before it was only considered
                calls.clear()
            at, closed_thinking = mark.end(), True
        else:
            call, at = _call_at(text, mark.end())
            calls.append(call)
    return calls


def _after(text: str, mark: str, at: int) -> int:
    found = text.find(mark, at)
    return len(text) if found < 0 else found + len(mark)


def _call_at(text: str, at: int) -> tuple[ToolCall | Malformed, int]:
    """Read the call whose `<tool_call>` ends at `at`; also where to go on."""
    start = _skip_space(text, at)
    if text.startswith("<function=", start):
        border = text.find(END_CALL, start)
        body = text[start:border] if border >= 0 else text[start:]
        call = _xml_call(body)
        if border < 0 and isinstance(call, ToolCall):
            call = Malformed(reason=f"unclosed {CALL}", name=call.name)
        return call, len(text) if border < 0 else border + len(END_CALL)
    try:
        # decoding from here, not cutting at the first </tool_call>: that may stand inside a string argument
        value, end = _decoder.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return Malformed(reason="invalid JSON", detail=_json_fault(error)), _next_border(text, start)
    close = _skip_space(text, end)
    if text.startswith(END_CALL, close):
        return _as_call(value), close + len(END_CALL)
    border = _next_border(text, end)
    if text.endswith(END_CALL, end, border):
        return Malformed(reason="invalid JSON", detail="one object was expected, and more follows it"), border
    return Malformed(reason=f"unclosed {CALL}", detail=f"{END_CALL} must follow the object"), border


def _next_border(text: str, at: int) -> int:
    border = _BORDER.search(text, at)
    if border is None:
        return len(text)
    return border.end() if border.group() == END_CALL else border.start()


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


_decoder = json.JSONDecoder(parse_constant=refuse_constant)


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _as_call(value: Any) -> ToolCall | Malformed:
    if not isinstance(value, dict):
        return Malformed(reason="not an object", detail='write {"name": ..., "arguments": {...}}')
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return Malformed(reason="missing name", detail='write {"name": ..., "arguments": {...}}')
    if "arguments" not in value:
        return Malformed(reason="missing arguments", detail='write {"name": ..., "arguments": {...}}', name=_plain(name))
    arguments = value["arguments"]
    if isinstance(arguments, str):  # an object that was encoded twice
        arguments = decoded(arguments)
    if not isinstance(arguments, dict):
        return Malformed(reason="arguments are not an object", detail=f"got {kind_of(arguments)}", name=_plain(name))
    return _carried(name, arguments)


def _carried(name: str, arguments: dict[str, Any]) -> ToolCall | Malformed:
    """Refuse what no message between processes can carry: lone surrogates, numbers beyond 64 bits, infinities."""
    try:
        msgspec.msgpack.encode([name, arguments])
        json.dumps(arguments, allow_nan=False)
    except (UnicodeError, OverflowError, ValueError, RecursionError) as error:
        return Malformed(reason="invalid arguments", detail=_plain(str(error)), name=_plain(name))
    return ToolCall(name=name, arguments=arguments)


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


_FUNCTION = re.compile(r"<function=([^<>\s]+)\s*>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)\s*>")


def _xml_call(body: str) -> ToolCall | Malformed:
    head = _FUNCTION.match(body)
    end = body.rfind("</function>")
    if head is None or end < head.end() or body[end:].strip() != "</function>":
        return Malformed(reason="invalid function", detail="write <function=NAME><parameter=KEY>value</parameter></function>")
    name = head.group(1)
    arguments: dict[str, Any] = {}
    at = head.end()
    while (parameter := _PARAMETER.match(body, at, end)) is not None:
        close = body.find("</parameter>", parameter.end(), end)
        if close < 0:
            return Malformed(reason="invalid function", detail=f"<parameter={parameter.group(1)}> is not closed", name=_plain(name))
        # one newline on each side belongs to the form, not to the value
        arguments[parameter.group(1)] = body[parameter.end() : close].removeprefix("\n").removesuffix("\n")
        at = close + len("</parameter>")
    if body[at:end].strip():
        return Malformed(reason="invalid function", detail="only <parameter=KEY>value</parameter> may stand in it", name=_plain(name))
    return _carried(name, arguments)


def check_call(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> ToolCall | Malformed:
    """Hold a call against the schemas: the same call with coerced arguments, or what is wrong with it."""
    schemas = {tool["name"]: tool for tool in (entry.get("function", entry) for entry in tools)}
    tool = schemas.get(call.name)
    if tool is None:
        detail = f"there is no {shown(call.name)}; tools: {', '.join(schemas) or 'none'}"
        return Malformed(reason="unknown tool", detail=detail, name=call.name)
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    try:
        arguments = coerce(schema, call.arguments)
    except Unfit as unfit:
        return Malformed(reason="invalid arguments", detail=str(unfit), name=call.name)
    return _carried(call.name, arguments)
