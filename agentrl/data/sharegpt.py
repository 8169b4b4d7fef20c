"""Rows of the ShareGPT kind, `conversations` with `from` and `value`, as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.data.faults import RowFault, described
from agentrl.data.message_rules import json_value

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""Who speaks -> the role of the message. A `function_call` is an assistant's message of calls alone, and its value is their JSON."""
COLUMNS = ("conversations", "prompt", "completion", "chosen", "rejected", "reference")
"""Where such messages may lie."""


def as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with such columns as messages, and `conversations` as `messages`; the same row where there are none.

    A column `system` of a row with `conversations` becomes its first message. Raises `RowFault` naming the message.
    """
    found = {column: row[column] for column in COLUMNS if _is_conversation(row.get(column))}
    if not found and not isinstance(row.get("conversations"), list | tuple):
        return dict(row)
    changed: dict[str, Any] = {}
    for column, value in row.items():
        new = "messages" if column == "conversations" and "messages" not in row else column
        changed[new] = _converted(value, column) if column in found else value
    system = changed.get("system")
    if "conversations" in found and isinstance(system, str) and system.strip():
        del changed["system"]
        if changed["messages"][0]["role"] != "system":
            changed["messages"].insert(0, {"role": "system", "content": system})
    return changed


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(turn, dict) and ("from" in turn and "value" in turn) for turn in value)


def _converted(turns: Any, column: str) -> list[dict[str, Any]]:
    return [_message(turn, f"{column}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: Any, field: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RowFault(field=field, expected="an object with `from` and `value`", got=described(turn))
    speaker, value = turn["from"], turn["value"]
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise RowFault(field=f"{field}.from", expected=f"one of {', '.join(ROLES)}", got=described(speaker))
    others = {key: one for key, one in turn.items() if key not in {"from", "value"}}
    if speaker != "function_call":
        return {"role": ROLES[speaker], "content": value, **others}
    expected = 'the JSON of a call {"name": ..., "arguments": ...}, or of a list of them'
    calls = json_value(value, f"{field}.value", expected)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise RowFault(field=f"{field}.value", expected=expected, got=described(value))
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call} for call in calls], **others}
