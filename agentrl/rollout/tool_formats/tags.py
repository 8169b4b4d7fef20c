"""Functions and their parameters as tags, the values between them as they are: Qwen3-Coder, Seed-OSS, MiniMax-M2, DeepSeek-V3.2, GLM-4.

Values are text until the schema of the tool says what they are; DeepSeek's tags say themselves whether a value is a string.

Sources: the chat templates of `ByteDance-Seed/Seed-OSS-36B-Instruct`, `MiniMaxAI/MiniMax-M2`, `deepseek-ai/DeepSeek-V3.2` (its
`encoding` folder), `zai-org/GLM-4.5` to `GLM-4.7` (where a call is a name and pairs of `arg_key` and `arg_value`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.rollout.arguments import decoded
from agentrl.rollout.tool_formats.base import (
    END_THINK,
    THINK,
    Block,
    Found,
    Malformed,
    ToolCall,
    ToolFormat,
    as_text,
    carried,
    resume,
    single,
    skip_space,
)
from agentrl.rollout.user_values import clean

if TYPE_CHECKING:
    from collections.abc import Sequence


INVALID_FUNCTION = "invalid function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """How a function with parameters is written."""

    function: re.Pattern[str]
    """Opens a function; its group is the name."""
    end_function: str
    parameter: re.Pattern[str]
    """Opens a parameter, space before it included; its first group is the name, a second one says whether the value is a string."""
    end_parameter: str
    lines: bool
    """Whether one newline on each side of a value belongs to the form."""
    form: str
    """For messages."""
    write_name: str
    """The opening of a function, with `{name}`."""
    write_key: str
    """The opening of a parameter, with `{key}` and, where it is said, `{string}`."""


def read_function(text: str, at: int, tags: Tags) -> tuple[ToolCall | Malformed, int]:
    """The function that begins at `at`, and where it or the part of it that can be read ends."""
    head = tags.function.match(text, at)
    if head is None:
        return Malformed(reason=INVALID_FUNCTION, detail="it does not begin with a name"), at
    name, at = head.group(1), head.end()
    arguments: dict[str, Any] = {}
    while (parameter := tags.parameter.match(text, at)) is not None:
        key = parameter.group(1)
        end = text.find(tags.end_parameter, parameter.end())
        # a value in which the function ends, too, has run over the end of its own call into the next one
        if end < 0 or tags.end_function in text[parameter.end() : end]:
            return Malformed(reason=INVALID_FUNCTION, detail=f"the parameter {clean(key)} is not closed", name=clean(name)), parameter.end()
        value: Any = text[parameter.end() : end]
        if tags.lines:
            value = value.removeprefix("\n").removesuffix("\n")
        told = parameter.group(2) if tags.parameter.groups > 1 else "true"
        arguments[key] = value if told == "true" else decoded(value)
        at = end + len(tags.end_parameter)
    at = skip_space(text, at)
    if not text.startswith(tags.end_function, at):
        return Malformed(reason=INVALID_FUNCTION, detail="only parameters may stand in it", name=clean(name)), at
    return carried(name, arguments), at + len(tags.end_function)


def write_function(call: ToolCall, tags: Tags) -> str:
    """A call in these tags."""
    edge = "\n" if tags.lines else ""
    parameters = [
        f"{tags.write_key.format(key=key, string=str(isinstance(value, str)).lower())}{edge}{as_text(value)}{edge}{tags.end_parameter}\n"
        for key, value in call.arguments.items()
    ]
    return f"{tags.write_name.format(name=call.name)}\n{''.join(parameters)}{tags.end_function}"


def _read_block(text: str, opening: re.Match[str], *, tags: Tags, close: str) -> Block:
    """Functions, one after another, up to the end of the block; where that never comes, none of them can be called."""
    found: list[Found] = []
    at = skip_space(text, opening.end())
    while not text.startswith(close, at):
        start = at if found else opening.start()
        call, end = read_function(text, at, tags)
        if isinstance(call, Malformed) and call.reason == INVALID_FUNCTION:
            if found and end == len(text):
                call = Malformed(reason=f"unclosed {opening.group()}")
            end = resume(text, end, close, opening.re)
            if not text.endswith(close, opening.end(), end):
                return single(call, opening.start(), end)
            return Block(found=(*found, Found(call=call, start=start, end=end)), end=end)
        found.append(Found(call=call, start=start, end=end))
        at = skip_space(text, end)
    if not found:
        return single(Malformed(reason="no function"), opening.start(), at + len(close))
    return Block(found=tuple(found), end=at + len(close))


def _write_block(calls: Sequence[ToolCall], *, tags: Tags, opening: str, close: str) -> str:
    functions = "\n".join(write_function(call, tags) for call in calls)
    return f"{opening}\n{functions}\n{close}"


def _block_format(name: str, tags: Tags, opening: str, close: str, *, think: tuple[str, str] = (THINK, END_THINK)) -> ToolFormat:
    return ToolFormat(
        name=name,
        form=f"{opening}{tags.form}{close}",
        opening=re.compile(re.escape(opening)),
        read=partial(_read_block, tags=tags, close=close),
        write=partial(_write_block, tags=tags, opening=opening, close=close),
        thinking=(think,),
    )


QWEN_TAGS = Tags(
    function=re.compile(r"<function=([^<>\s]+)\s*>"),
    end_function="</function>",
    parameter=re.compile(r"\s*<parameter=([^<>\s]+)\s*>"),
    end_parameter="</parameter>",
    lines=True,
    form="<function=NAME><parameter=KEY>value</parameter></function>",
    write_name="<function={name}>",
    write_key="<parameter={key}>",
)
_SEED_TAGS = Tags(
    function=QWEN_TAGS.function,
    end_function="</function>",
    parameter=QWEN_TAGS.parameter,
    end_parameter="</parameter>",
    lines=False,
    form=QWEN_TAGS.form,
    write_name="<function={name}>",
    write_key="<parameter={key}>",
)
_MINIMAX_TAGS = Tags(
    function=re.compile(r'<invoke name="([^"<>]+)">'),
    end_function="</invoke>",
    parameter=re.compile(r'\s*<parameter name="([^"<>]+)">'),
    end_parameter="</parameter>",
    lines=False,
    form='<invoke name="NAME"><parameter name="KEY">value</parameter></invoke>',
    write_name='<invoke name="{name}">',
    write_key='<parameter name="{key}">',
)
_BAR = "\uff5c"  # DeepSeek's fullwidth vertical bar
_DSML_TAGS = Tags(
    function=re.compile(rf'<{_BAR}DSML{_BAR}invoke name="([^"<>]+)">'),
    end_function=f"</{_BAR}DSML{_BAR}invoke>",
    parameter=re.compile(rf'\s*<{_BAR}DSML{_BAR}parameter name="([^"<>]+)" string="(true|false)">'),
    end_parameter=f"</{_BAR}DSML{_BAR}parameter>",
    lines=False,
    form=(
        f'<{_BAR}DSML{_BAR}invoke name="NAME"><{_BAR}DSML{_BAR}parameter name="KEY" string="true|false">value'
        f"</{_BAR}DSML{_BAR}parameter></{_BAR}DSML{_BAR}invoke>"
    ),
    write_name=f'<{_BAR}DSML{_BAR}invoke name="{{name}}">',
    write_key=f'<{_BAR}DSML{_BAR}parameter name="{{key}}" string="{{string}}">',
)

SEED = _block_format("seed", _SEED_TAGS, "<seed:tool_call>", "</seed:tool_call>", think=("<seed:think>", "</seed:think>"))
MINIMAX = _block_format("minimax", _MINIMAX_TAGS, "<minimax:tool_call>", "</minimax:tool_call>")
DEEPSEEK_TAGS = _block_format("deepseek-v3.2", _DSML_TAGS, f"<{_BAR}DSML{_BAR}function_calls>", f"</{_BAR}DSML{_BAR}function_calls>")

_GLM_CALL, _GLM_END = "<tool_call>", "</tool_call>"
_GLM_FORM = f"{_GLM_CALL}NAME<arg_key>KEY</arg_key><arg_value>value</arg_value>{_GLM_END}"
_GLM_NAME = re.compile(r"\s*([^<>\s{}\[\]]+)")
_GLM_KEY = re.compile(r"\s*<arg_key>([^<>]+)</arg_key>\s*<arg_value>")


def _read_glm(text: str, opening: re.Match[str]) -> Block:
    name = _GLM_NAME.match(text, opening.end())
    if name is None:
        fault = Malformed(reason="missing name")
        return single(fault, opening.start(), resume(text, opening.end(), _GLM_END, opening.re))
    arguments: dict[str, Any] = {}
    at = name.end()
    while (key := _GLM_KEY.match(text, at)) is not None:
        end = text.find("</arg_value>", key.end())
        if end < 0 or _GLM_END in text[key.end() : end]:
            fault = Malformed(
                reason=INVALID_FUNCTION, detail=f"the argument {clean(key.group(1))} is not closed", name=clean(name.group(1))
            )
            return single(fault, opening.start(), resume(text, key.end(), _GLM_END, opening.re))
        arguments[key.group(1).strip()] = text[key.end() : end]
        at = end + len("</arg_value>")
    at = skip_space(text, at)
    if not text.startswith(_GLM_END, at):
        fault = Malformed(reason=INVALID_FUNCTION, detail="only arguments may follow the name", name=clean(name.group(1)))
        return single(fault, opening.start(), resume(text, at, _GLM_END, opening.re))
    return single(carried(name.group(1), arguments), opening.start(), at + len(_GLM_END))


def _write_glm(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"{_GLM_CALL}{call.name}\n{_glm_arguments(call)}{_GLM_END}" for call in calls)


def _glm_arguments(call: ToolCall) -> str:
    return "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{as_text(value)}</arg_value>\n" for key, value in call.arguments.items())


GLM = ToolFormat(name="glm", form=_GLM_FORM, opening=re.compile(_GLM_CALL), read=_read_glm, write=_write_glm)
