"""Calls as a name in a header and a JSON object behind it: DeepSeek-V3, R1 and V3.1, Kimi-K2, the newer Mistral models.

Sources: the chat templates of `deepseek-ai/DeepSeek-V3`, `DeepSeek-R1` (`function<sep>NAME`, the object fenced as JSON) and
`DeepSeek-V3.1` (`NAME<sep>{...}`), the tool call guidance of `moonshotai/Kimi-K2-Instruct` (`functions.NAME:INDEX`), and the templates
of `mistralai/Mistral-Small-3.2`, `Magistral-Small-2507`, `Devstral-2` and `Ministral-3` (`[TOOL_CALLS]NAME[ARGS]{...}`, an id perhaps
between them), whose `mistral-common` calls that tokenizer version 11 and up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from agentrl.rollout.tool_formats.base import (
    END_THINK,
    MOST_CALLS,
    THINK,
    Block,
    Found,
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
from agentrl.rollout.tool_formats.lists import read_list, write_list
from agentrl.rollout.user_values import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

_BAR, _GAP = "\uff5c", "\u2581"  # DeepSeek's fullwidth vertical bar and lower one eighth block


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """How a name and its arguments are written."""

    head: re.Pattern[str]
    """What precedes the arguments; its group `name` is the tool's."""
    tail: re.Pattern[str]
    """What follows them."""
    form: str
    """For messages."""


def read_named(text: str, at: int, header: Header) -> tuple[ToolCall | Malformed, int]:
    """The call that begins at `at`, and where it or the part of it that can be read ends."""
    head = header.head.match(text, at)
    if head is None:
        return Malformed(reason="missing name"), at
    name = head["name"]
    try:
        value, end = read_json(text, skip_space(text, head.end()))
    except (ValueError, RecursionError) as error:
        return Malformed(reason="invalid JSON", detail=json_fault(error), name=clean(name)), head.end()
    tail = header.tail.match(text, end)
    if tail is None:
        return Malformed(reason="unclosed call", detail="the end of it must follow the object", name=clean(name)), end
    return arguments_call(name, value), tail.end()


def _read_section(text: str, opening: re.Match[str], *, header: Header, begin: str, end: str, close: str) -> Block:
    """Calls, each between `begin` and `end`, up to the end of the section; where that never comes, none of them can be made."""
    found: list[Found] = []
    at = opening.end() - len(begin) if opening.group().endswith(begin) else opening.end()
    while text.startswith(begin, start := skip_space(text, at)):
        call, at = read_named(text, start + len(begin), header)
        if isinstance(call, Malformed) and not text.endswith(end, start, at):
            at = resume(text, at, end, re.compile(f"{re.escape(begin)}|{re.escape(close)}"))
        found.append(Found(call=call, start=start if found else opening.start(), end=at))
        if len(found) > MOST_CALLS:  # the reader of the turn says so
            at = max(at, text.find(close, at))
            break
    closed = skip_space(text, at)
    if not text.startswith(close, closed) and opening.group() != begin:
        last = found[-1].call if found else None
        fault = (
            last if isinstance(last, Malformed) else Malformed(reason=f"unclosed {opening.group()}", detail=f"{close} must end the calls")
        )
        return single(fault, opening.start(), at)
    stop = closed + len(close) if text.startswith(close, closed) else at
    if not found:
        return single(Malformed(reason="no call"), opening.start(), stop)
    return Block(found=tuple(found), end=stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """The marks of a section of calls."""

    opening: str
    begin: str
    end: str
    close: str

    def format(self, name: str, header: Header, write: str, between: str = "") -> ToolFormat:
        """The format; `write` is one call with `{name}`, `{arguments}` and `{index}`."""

        def written(calls: Sequence[ToolCall]) -> str:
            texts = [write.format(name=call.name, arguments=as_json(call.arguments), index=index) for index, call in enumerate(calls)]
            return f"{self.opening}{between.join(texts)}{self.close}"

        return ToolFormat(
            name=name,
            form=f"{self.opening}{self.begin}{header.form}{self.close}",
            opening=re.compile(f"{re.escape(self.opening)}|{re.escape(self.begin)}"),
            read=partial(_read_section, header=header, begin=self.begin, end=self.end, close=self.close),
            write=written,
        )


def _deepseek(mark: str) -> str:
    return f"<{_BAR}tool{_GAP}{mark.replace(' ', _GAP)}{_BAR}>"


_DEEPSEEK = _Section(
    opening=_deepseek("calls begin"), begin=_deepseek("call begin"), end=_deepseek("call end"), close=_deepseek("calls end")
)
_SEP = _deepseek("sep")
_DEEPSEEK_V3_HEADER = Header(
    head=re.compile(rf"function{_SEP}(?P<name>[^<>\s]+)\s*```json"),
    tail=re.compile(rf"\s*```\s*{re.escape(_DEEPSEEK.end)}"),
    form=f"function{_SEP}NAME\n```json\n{{...}}\n```{_DEEPSEEK.end}",
)
_DEEPSEEK_V31_HEADER = Header(
    head=re.compile(rf"(?P<name>[^<>\s]+){_SEP}"),
    tail=re.compile(rf"\s*{re.escape(_DEEPSEEK.end)}"),
    form=f"NAME{_SEP}{{...}}{_DEEPSEEK.end}",
)
DEEPSEEK_V3 = _DEEPSEEK.format(
    "deepseek-v3",
    _DEEPSEEK_V3_HEADER,
    f"{_DEEPSEEK.begin}function{_SEP}{{name}}\n```json\n{{arguments}}\n```{_DEEPSEEK.end}",
    between="\n",
)
DEEPSEEK_V31 = _DEEPSEEK.format("deepseek-v3.1", _DEEPSEEK_V31_HEADER, f"{_DEEPSEEK.begin}{{name}}{_SEP}{{arguments}}{_DEEPSEEK.end}")

_KIMI = _Section(
    opening="<|tool_calls_section_begin|>", begin="<|tool_call_begin|>", end="<|tool_call_end|>", close="<|tool_calls_section_end|>"
)
_KIMI_HEADER = Header(
    head=re.compile(r"\s*(?:functions\.)?+(?P<name>[^<>\s:]+):\d+\s*<\|tool_call_argument_begin\|>"),
    tail=re.compile(r"\s*<\|tool_call_end\|>"),
    form="functions.NAME:INDEX<|tool_call_argument_begin|>{...}<|tool_call_end|>",
)
KIMI = _KIMI.format(
    "kimi",
    _KIMI_HEADER,
    "<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
)

_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_HEADER = Header(
    head=re.compile(r"\s*(?P<name>[^\s\[\]{}]+)(?:\[CALL_ID\][^\s\[\]{}]+)?(?:\[ARGS\])?"),
    tail=re.compile(""),
    form="NAME[ARGS]{...}",
)


def _read_mistral(text: str, opening: re.Match[str]) -> Block:
    """A list of calls, or one call; each further one of the newer form has a mark of its own."""
    if text.startswith("[", skip_space(text, opening.end())):
        return read_list(text, opening)
    call, end = read_named(text, opening.end(), _MISTRAL_HEADER)
    if isinstance(call, Malformed) and call.reason in ("missing name", "invalid JSON"):
        end = resume(text, opening.end(), "", opening.re)
    return single(call, opening.start(), end)


def _write_mistral(calls: Sequence[ToolCall]) -> str:
    return "".join(f"{_MISTRAL}{call.name}[ARGS]{as_json(call.arguments)}" for call in calls)


_MISTRAL_OPENING = re.compile(re.escape(_MISTRAL))
_MISTRAL_THINKING = (("[THINK]", "[/THINK]"), (THINK, END_THINK))

MISTRAL = ToolFormat(
    name="mistral",
    form=f'{_MISTRAL} [{{"name": ..., "arguments": {{...}}}}]',
    opening=_MISTRAL_OPENING,
    read=_read_mistral,
    write=partial(write_list, opening=f"{_MISTRAL} "),
    thinking=_MISTRAL_THINKING,
)
MISTRAL_ARGS = ToolFormat(
    name="mistral-args",
    form=f"{_MISTRAL}{_MISTRAL_HEADER.form}",
    opening=_MISTRAL_OPENING,
    read=_read_mistral,
    write=_write_mistral,
    thinking=_MISTRAL_THINKING,
)
