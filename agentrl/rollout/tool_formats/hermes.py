"""Calls between `<tool_call>` and `</tool_call>`: JSON objects (Hermes, Qwen 2.5 and 3) or functions in tags (Qwen3-Coder, Qwen 3.5).

Sources: the chat templates of `NousResearch/Hermes-2-Pro-*`, `Qwen/Qwen2.5-*`, `Qwen/Qwen3-*` and `ibm-granite/granite-4.0-*` (a JSON
object with `name` and `arguments`), and of `Qwen/Qwen3-Coder-*`, `Qwen/Qwen3.5-*` and `nvidia/NVIDIA-Nemotron-3-*` (tags, which
`agentrl.rollout.tool_formats.tags` reads). Both bodies are read in both formats; they differ in what a model is told to write.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentrl.rollout.tool_formats.base import (
    THINK,
    Block,
    Malformed,
    ToolCall,
    ToolFormat,
    as_json,
    json_fault,
    object_call,
    read_json,
    single,
    skip_space,
)
from agentrl.rollout.tool_formats.tags import QWEN_TAGS, read_function, write_function

if TYPE_CHECKING:
    from collections.abc import Sequence

CALL, END_CALL = "<tool_call>", "</tool_call>"
OBJECT = '{"name": ..., "arguments": {...}}'

_BORDER = re.compile(f"{THINK}|{CALL}|{END_CALL}")
_OPENING = re.compile(CALL)


def _read(text: str, opening: re.Match[str]) -> Block:
    start = skip_space(text, opening.end())
    call, end = _tagged(text, start) if text.startswith("<function=", start) else _object(text, start)
    return single(call, opening.start(), end)


def _object(text: str, start: int) -> tuple[ToolCall | Malformed, int]:
    try:
        value, end = read_json(text, start)
    except (ValueError, RecursionError) as error:
        return Malformed(reason="invalid JSON", detail=json_fault(error)), _next_border(text, start)
    close = skip_space(text, end)
    if text.startswith(END_CALL, close):
        return object_call(value), close + len(END_CALL)
    border = _next_border(text, end)
    if text.endswith(END_CALL, end, border):
        return Malformed(reason="invalid JSON", detail="one object was expected, and more follows it"), border
    return Malformed(reason=f"unclosed {CALL}", detail=f"{END_CALL} must follow the object"), border


def _tagged(text: str, start: int) -> tuple[ToolCall | Malformed, int]:
    call, end = read_function(text, start, QWEN_TAGS)
    if isinstance(call, Malformed):
        return call, _next_border(text, end)
    close = skip_space(text, end)
    if text.startswith(END_CALL, close):
        return call, close + len(END_CALL)
    border = _next_border(text, end)
    if text.endswith(END_CALL, end, border):
        return Malformed(reason="invalid function", detail="one function was expected, and more follows it", name=call.name), border
    return Malformed(reason=f"unclosed {CALL}", detail=f"{END_CALL} must follow the function", name=call.name), border


def _next_border(text: str, at: int) -> int:
    border = _BORDER.search(text, at)
    if border is None:
        return len(text)
    return border.end() if border.group() == END_CALL else border.start()


def _write_objects(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"{CALL}\n{as_json({'name': call.name, 'arguments': call.arguments})}\n{END_CALL}" for call in calls)


def _write_functions(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"{CALL}\n{write_function(call, QWEN_TAGS)}\n{END_CALL}" for call in calls)


HERMES = ToolFormat(name="hermes", form=f"{CALL}{OBJECT}{END_CALL}", opening=_OPENING, read=_read, write=_write_objects)
QWEN_CODER = ToolFormat(name="qwen-coder", form=f"{CALL}{QWEN_TAGS.form}{END_CALL}", opening=_OPENING, read=_read, write=_write_functions)
