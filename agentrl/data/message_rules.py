"""What a list of messages may hold: roles, contents, tool calls and tool results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agentrl.data.faults import RowFault, described

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which templates look for what an assistant thought before it answered."""
_ONE_OBJECT = "a JSON object, or its text"


def check_messages(value: Any, field: str) -> Sequence[Mapping[str, Any]]:
    """The messages of a column. Raises `RowFault` for what is no conversation, naming the message and the key.

    Args:
        value: of the column.
        field: its name.
    """
    if not isinstance(value, list | tuple):
        raise RowFault(field=field, expected="a list of messages, each an object with `role` and `content`", got=described(value))
    if not value:
        raise RowFault(field=field, expected="at least one message", got="an empty list")
    for index, message in enumerate(value):
        try:
            _check_message(message)
        except RowFault as fault:
            raise fault.inside(f"{field}[{index}]") from None
    return value


def says_something(message: Mapping[str, Any]) -> bool:
    """Whether a message has text, a call or reasoning, so that a template has something to write."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = "".join(str(block.get("text", "")) for block in content)
    return bool((content or "").strip() or message.get("tool_calls") or any((message.get(key) or "").strip() for key in REASONING))


def json_value(value: Any, field: str, expected: str) -> Any:
    """A column that may hold JSON or the text of it. Raises `RowFault` where a text is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowFault(field=field, expected=expected, got=f"{described(value)}, which is not JSON ({error})") from None


def _check_message(message: Any) -> None:
    if not isinstance(message, dict):
        raise RowFault(field="row", expected="an object with `role` and `content`", got=described(message))
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RowFault(field="role", expected=f"one of {', '.join(ROLES)}", got=_got(message, "role"), cure=_cure_of_role(message))
    _check_content(message, role)
    for key in REASONING:
        if message.get(key) is not None:
            _check_reasoning(message[key], key, role)
    if message.get("tool_calls") is not None:
        _check_calls(message["tool_calls"], role)
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None and not isinstance(message[key], str):
            raise RowFault(field=key, expected="text or absent", got=described(message[key]))


def _cure_of_role(message: Mapping[str, Any]) -> str | None:
    if "role" not in message and "from" in message:
        return "rows with `from` and `value` are read in the column `conversations`"
    return None


def _got(message: Mapping[str, Any], key: str) -> str:
    return described(message[key]) if key in message else f"none: {described(dict(message))}"


def _check_content(message: Mapping[str, Any], role: str) -> None:
    content = message.get("content")
    if isinstance(content, list | tuple):
        for index, block in enumerate(content):
            _check_block(block, f"content[{index}]")
        return
    replaced = role == "assistant" and (message.get("tool_calls") or any(message.get(key) for key in REASONING))
    if not isinstance(content, str) and not (content is None and replaced):
        expected = "text, or absent beside `tool_calls`" if role == "assistant" else "text"
        raise RowFault(field="content", expected=expected, got=_got(message, "content"))


def _check_block(block: Any, field: str) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in {"image", "image_url", "video", "audio", "input_audio"}:
        raise RowFault(field=field, expected="a block of text", got=f"one of type {kind}", cure="agentrl trains text only")
    if kind != "text" or not isinstance(block.get("text"), str):
        raise RowFault(field=field, expected='an object {"type": "text", "text": ...}', got=described(block))


def _check_reasoning(value: Any, key: str, role: str) -> None:
    if role != "assistant":
        raise RowFault(field=key, expected="absent: only assistant messages reason", got=described(value))
    if not isinstance(value, str):
        raise RowFault(field=key, expected="text", got=described(value))


def _check_calls(calls: Any, role: str) -> None:
    if role != "assistant":
        raise RowFault(field="tool_calls", expected="absent: only assistant messages call tools", got=described(calls))
    if not isinstance(calls, list | tuple):
        raise RowFault(field="tool_calls", expected="a list of calls", got=described(calls))
    for index, call in enumerate(calls):
        _check_call(call, f"tool_calls[{index}]")


def _check_call(call: Any, field: str) -> None:
    expected = 'a call {"type": "function", "function": {"name": ..., "arguments": ...}}'
    if not isinstance(call, dict):
        raise RowFault(field=field, expected=expected, got=described(call))
    function, field = (call["function"], f"{field}.function") if "function" in call else (call, field)
    if not isinstance(function, dict):
        raise RowFault(field=field, expected="an object with `name` and `arguments`", got=described(function))
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RowFault(field=f"{field}.name", expected="the tool's name", got=_got(function, "name"))
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(json_value(arguments, f"{field}.arguments", _ONE_OBJECT), dict):
        raise RowFault(field=f"{field}.arguments", expected=_ONE_OBJECT, got=described(arguments))
