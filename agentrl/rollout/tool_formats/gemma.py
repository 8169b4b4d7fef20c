"""Calls as `call:NAME{KEY:value}`, strings between marks of their own: FunctionGemma and Gemma 4.

Sources: "FunctionGemma formatting and best practices" on ai.google.dev (`<start_function_call>`, strings between `<escape>`), and the
chat template of `google/gemma-4-*` (`<|tool_call>call:...<tool_call|>`, strings between `<|"|>`, reasoning in a channel `thought`).
Gemma 3 has no form of its own: its documentation leaves that to the prompt.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.rollout.tool_formats.base import (
    END_THINK,
    THINK,
    Block,
    Malformed,
    ToolCall,
    ToolFormat,
    as_json,
    carried,
    resume,
    single,
)
from agentrl.rollout.tool_formats.literals import Literals, after_space
from agentrl.rollout.user_values import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = re.compile(r"\s*call:([^\s{}:]+)\{")


def _read(text: str, opening: re.Match[str], *, close: str, literals: Literals) -> Block:
    head = _HEAD.match(text, opening.end())
    if head is None:
        fault = Malformed(reason="invalid call")
        return single(fault, opening.start(), resume(text, opening.end(), close, opening.re))
    name = head.group(1)
    try:
        arguments, end = literals.mapping(text, head.end(), "}", ":")
    except ValueError as error:
        fault = Malformed(reason="invalid call", detail=clean(str(error)), name=clean(name))
        return single(fault, opening.start(), resume(text, head.end(), close, opening.re))
    closed = after_space(text, end)
    if not text.startswith(close, closed):
        fault = Malformed(reason=f"unclosed {opening.group()}", detail=f"{close} must follow the arguments", name=clean(name))
        return single(fault, opening.start(), resume(text, end, close, opening.re))
    return single(carried(name, arguments), opening.start(), closed + len(close))


def _written(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(item, quote)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_written(item, quote) for item in value)}]"
    return as_json(value)


def _write(calls: Sequence[ToolCall], *, opening: str, close: str, quote: str) -> str:
    return "".join(f"{opening}call:{call.name}{_written(call.arguments, quote)}{close}" for call in calls)


def _format(name: str, opening: str, close: str, quote: str, thinking: tuple[tuple[str, str], ...]) -> ToolFormat:
    form = f"{opening}call:NAME{{KEY:{quote}text{quote},KEY:1}}{close}"
    literals = Literals(quotes=(quote,), escapes=False, bare_keys=True)
    return ToolFormat(
        name=name,
        form=form,
        opening=re.compile(re.escape(opening)),
        read=partial(_read, close=close, literals=literals),
        write=partial(_write, opening=opening, close=close, quote=quote),
        thinking=thinking,
    )


FUNCTION_GEMMA = _format("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>", ((THINK, END_THINK),))
GEMMA = _format("gemma", "<|tool_call>", "<tool_call|>", '<|"|>', (("<|channel>thought", "<channel|>"),))
