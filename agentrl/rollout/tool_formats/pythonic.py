"""Calls as a list of Python calls with named arguments: Llama 3.2 and 4, LFM2, OLMo-3.

Sources: the prompt formats that Meta publishes for `Llama-3.2-1B-Instruct`, `Llama-3.2-3B-Instruct` and `Llama-4-*` (`[f(a=1), g()]`,
in Llama 4 perhaps between `<|python_start|>` and `<|python_end|>`), the chat template of `LiquidAI/LFM2-*` (the list between
`<|tool_call_start|>` and `<|tool_call_end|>`). Constants of JSON (`true`, `null`) are read as well: LFM2's template writes them.
Values are literals; nothing is evaluated.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.rollout.tool_formats.base import Block, Found, Malformed, ToolCall, ToolFormat, carried, resume, single
from agentrl.rollout.tool_formats.literals import Literals, after_space
from agentrl.rollout.user_values import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

FORM = "[NAME(KEY=value, ...)]"

_LITERALS = Literals()
_HEAD = re.compile(r"\s*([^\W\d][\w.-]*)\s*\(")


def _read(text: str, opening: re.Match[str], *, close: str) -> Block:
    """The list behind an opening mark, up to the closing one; without a mark it is the whole answer."""
    start, bare = opening.start(), not opening.group()
    try:
        found, end = _calls(text, after_space(text, opening.end()))
    except ValueError as error:
        stop = len(text) if bare else resume(text, opening.end(), close, opening.re)
        return single(Malformed(reason="invalid call", detail=clean(str(error))), start, stop)
    closed = after_space(text, end)
    if bare and closed < len(text):
        return single(Malformed(reason="invalid call", detail="the list must be the whole answer"), start, len(text))
    if bare:
        return Block(found=tuple(found), end=closed)
    if not text.startswith(close, closed):
        fault = Malformed(reason=f"unclosed {opening.group()}", detail=f"{close} must follow the list")
        return single(fault, start, resume(text, end, close, opening.re))
    return Block(found=tuple(found), end=closed + len(close))


def _calls(text: str, at: int) -> tuple[list[Found], int]:
    """The calls of the list that begins at `at`. Raises `ValueError`."""
    if not text.startswith("[", at):
        raise ValueError("a list was expected")
    found: list[Found] = []
    at += 1
    while True:
        head = _HEAD.match(text, at)
        if head is None:
            raise ValueError(f"a call was expected, got {text[at : at + 20]!r}")
        arguments, end = _LITERALS.mapping(text, head.end(), ")", "=")
        found.append(Found(call=carried(head.group(1), arguments), start=head.start(1), end=end))
        at = after_space(text, end)
        if text.startswith("]", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise ValueError(f"a comma or the end of the list was expected, got {text[at : at + 20]!r}")
        at += 1


def _write(calls: Sequence[ToolCall], *, opening: str = "", close: str = "") -> str:
    return f"{opening}[{', '.join(map(_written, calls))}]{close}"


def _written(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def _format(name: str, opening: str, marks: tuple[str, str], **more: Any) -> ToolFormat:
    start, close = marks
    return ToolFormat(
        name=name,
        form=f"{start}{FORM}{close}",
        opening=re.compile(opening),
        read=partial(_read, close=close),
        write=partial(_write, opening=start, close=close),
        **more,
    )


_BARE = r"(?=\[\s*[^\W\d][\w.-]*\s*\()"

LLAMA_PYTHONIC = ToolFormat(
    name="pythonic",
    form=FORM,
    opening=re.compile(rf"<\|python_start\|>|{_BARE}"),
    read=partial(_read, close="<|python_end|>"),
    write=_write,
)
LFM = _format("lfm", r"<\|tool_call_start\|>", ("<|tool_call_start|>", "<|tool_call_end|>"))
