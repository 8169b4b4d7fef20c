"""gpt-oss's harmony: messages in channels, calls addressed to `functions.NAME`.

Read are reasoning (channel `analysis`), text (`final`, and `commentary` without an address), and calls with JSON arguments (`commentary`
or `analysis` to `functions.NAME`). Not supported: the built-in tools (`browser`, `python`), which are reported as malformed, and
`<|constrain|>` types other than JSON. A turn ends at `<|call|>`, so it holds one call.

Source: the harmony response format of `openai/harmony` and the chat template of `openai/gpt-oss-*`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentrl.rollout.tool_formats.base import (
    UNKNOWN_TOOL,
    Block,
    Malformed,
    ToolCall,
    ToolFormat,
    arguments_call,
    as_json,
    json_fault,
    read_json,
    resume,
    single,
    skip_space,
)
from agentrl.rollout.user_values import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

FORM = "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>"

# the address stands before or behind the channel
_OPENING = re.compile(
    r"(?:<\|start\|>assistant)?(?: to=(?P<first>[^\s<]+))? ?<\|channel\|>(?:commentary|analysis)"
    r"(?(first)| to=(?P<second>[^\s<]+))[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_PREFIX = "functions."


def _read(text: str, opening: re.Match[str]) -> Block:
    address = opening["first"] or opening["second"]
    name = address.removeprefix(_PREFIX)
    if not address.startswith(_PREFIX) or not name:
        fault = Malformed(reason=UNKNOWN_TOOL, detail=f"there is no {clean(address)}", name=clean(address))
        return single(fault, opening.start(), resume(text, opening.end(), "<|call|>", re.compile(r"<\|start\|>")))
    start = skip_space(text, opening.end())
    try:
        value, end = read_json(text, start)
    except (ValueError, RecursionError) as error:
        fault = Malformed(reason="invalid JSON", detail=json_fault(error), name=clean(name))
        return single(fault, opening.start(), resume(text, start, "<|call|>", re.compile(r"<\|start\|>")))
    closed = skip_space(text, end)
    if text.startswith("<|call|>", closed):
        return single(arguments_call(name, value), opening.start(), closed + len("<|call|>"))
    if closed == len(text):  # the end token of the turn, which is not in its text
        return single(arguments_call(name, value), opening.start(), closed)
    fault = Malformed(reason="invalid JSON", detail="one object was expected, and more follows it", name=clean(name))
    return single(fault, opening.start(), resume(text, end, "<|call|>", re.compile(r"<\|start\|>")))


def _write(calls: Sequence[ToolCall]) -> str:
    texts = [
        f"<|channel|>commentary to={_PREFIX}{call.name} <|constrain|>json<|message|>{as_json(call.arguments)}<|call|>" for call in calls
    ]
    return "<|start|>assistant".join(texts)


HARMONY = ToolFormat(
    name="harmony",
    form=FORM,
    opening=_OPENING,
    read=_read,
    write=_write,
    thinking=(("<|channel|>analysis<|message|>", "<|end|>"),),
    implied=False,
    ends_turn="<|call|>",
    punctuation=(
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>",
        "<|end|>",
        "<|return|>",
    ),
)
