"""Calls as JSON objects in one list behind a marker, or as the whole answer.

Sources: the chat templates of `mistralai/Mistral-7B-Instruct-v0.3` to `Mistral-Small-3.1` (`[TOOL_CALLS] [{...}]`),
`ibm-granite/granite-3.*-instruct` (`<|tool_call|>[{...}]`), `microsoft/Phi-4-mini-instruct` (`<|tool_call|>[{...}]<|/tool_call|>`; vLLM's
template for it has `functools[{...}]`, which is read as well), `CohereLabs/c4ai-command-r7b-12-2024` (`<|START_ACTION|>`, with
`tool_name` and `parameters`), `nvidia/NVIDIA-Nemotron-Nano-9B-v2` (`<TOOLCALL>`), and `meta-llama/Llama-3.1-*` to `3.3` (objects with
`name` and `parameters` that are the whole answer, several of them apart by `;`, perhaps behind `<|python_tag|>`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.rollout.tool_formats.base import (
    Block,
    Found,
    Malformed,
    ToolCall,
    ToolFormat,
    as_json,
    json_fault,
    object_call,
    read_json,
    resume,
    single,
    skip_space,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What the parts of a call are called in its object."""

    name: str = "name"
    arguments: str = "arguments"

    @property
    def form(self) -> str:
        """For messages."""
        return f'{{"{self.name}": ..., "{self.arguments}": {{...}}}}'

    def call(self, value: Any) -> ToolCall | Malformed:
        """A decoded object as a call."""
        return object_call(value, name_key=self.name, key=self.arguments)

    def write(self, call: ToolCall) -> str:
        """A call as an object."""
        return as_json({self.name: call.name, self.arguments: call.arguments})


KEYS = Keys()


def read_list(text: str, opening: re.Match[str], *, keys: Keys = KEYS, close: str = "") -> Block:
    """A JSON list of calls, and its closing mark where the format has one. A fault anywhere in it makes it one malformed call."""
    start = skip_space(text, opening.end())
    try:
        found, end = _elements(text, start, keys)
    except (ValueError, RecursionError) as error:
        fault = Malformed(reason="invalid JSON", detail=json_fault(error))
        return single(fault, opening.start(), resume(text, start, close, opening.re))
    closed = skip_space(text, end)
    if not text.startswith(close, closed):
        fault = Malformed(reason=f"unclosed {opening.group().strip()}", detail=f"{close} must follow the list")
        return single(fault, opening.start(), resume(text, end, close, opening.re))
    if not found:
        return single(Malformed(reason="no call"), opening.start(), closed + len(close))
    return Block(found=tuple(found), end=closed + len(close) if close else end)


def _elements(text: str, start: int, keys: Keys) -> tuple[list[Found], int]:
    if not text.startswith("[", start):
        raise ValueError("a list was expected")
    found: list[Found] = []
    at = skip_space(text, start + 1)
    if text.startswith("]", at):
        return found, at + 1
    while True:
        value, end = read_json(text, at)
        found.append(Found(call=keys.call(value), start=at, end=end))
        at = skip_space(text, end)
        if text.startswith("]", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise ValueError("a comma or the end of the list was expected")
        at = skip_space(text, at + 1)


def write_list(calls: Sequence[ToolCall], *, opening: str, close: str = "", keys: Keys = KEYS) -> str:
    """Calls as a JSON list."""
    return f"{opening}[{', '.join(map(keys.write, calls))}]{close}"


def _list_format(name: str, opening: str, close: str = "", *, keys: Keys = KEYS, also: str = "", **more: Any) -> ToolFormat:
    return ToolFormat(
        name=name,
        form=f"{opening}[{keys.form}]{close}",
        opening=re.compile(re.escape(opening) + also),
        read=partial(read_list, keys=keys, close=close),
        write=partial(write_list, opening=opening, close=close, keys=keys),
        **more,
    )


_COHERE_KEYS = Keys(name="tool_name", arguments="parameters")

GRANITE = _list_format("granite", "<|tool_call|>")
PHI = _list_format("phi", "<|tool_call|>", "<|/tool_call|>")
FUNCTOOLS = _list_format("functools", "functools", also=r"(?=\s*\[)")
NEMOTRON = _list_format("nemotron", "<TOOLCALL>", "</TOOLCALL>")
COHERE = _list_format(
    "cohere",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    keys=_COHERE_KEYS,
    thinking=(("<|START_THINKING|>", "<|END_THINKING|>"),),
    punctuation=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)

_LLAMA_KEYS = Keys(arguments="parameters")


def _read_llama(text: str, opening: re.Match[str]) -> Block:
    """Objects apart by `;`, up to the end of the turn."""
    found: list[Found] = []
    at = skip_space(text, opening.end())
    while True:
        try:
            value, end = read_json(text, at)
        except (ValueError, RecursionError) as error:
            fault = Malformed(reason="invalid JSON", detail=json_fault(error))
            return single(fault, opening.start(), len(text))
        found.append(Found(call=_LLAMA_KEYS.call(value), start=at, end=end))
        at = skip_space(text, end)
        if not text.startswith(";", at):
            break
        at = skip_space(text, at + 1)
    if at < len(text):
        fault = Malformed(reason="invalid JSON", detail="a call is the whole answer, with ; between two")
        return single(fault, opening.start(), len(text))
    return Block(found=tuple(found), end=at)


def _write_llama(calls: Sequence[ToolCall]) -> str:
    return "; ".join(map(_LLAMA_KEYS.write, calls))


LLAMA = ToolFormat(
    name="llama",
    form=_LLAMA_KEYS.form,
    opening=re.compile(r'<\|python_tag\|>|(?=\{\s*"(?:name|type|function|parameters)")'),
    read=_read_llama,
    write=_write_llama,
)
