"""Rows of a file read as assistant turns: what `agentrl grade tool-calls` prints.

A row has `text` (the decoded turn) and `tools` (OpenAI function schemas), and may have `thinking` (whether the prompt ended inside open
reasoning), `format` (one of `agentrl.rollout.tool_formats.known`, by default `hermes`) and `calls`, the right answer: a list of
`{"name": ..., "arguments": {...}}` and `{"malformed": reason}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError
from agentrl.rollout.arguments import exactly, shown
from agentrl.rollout.tool_formats.known import FORMATS
from agentrl.rollout.toolcalls import Malformed, read_turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def grade_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Read each row: its `calls`, a `verdict` and a `reason`.

    The verdict is `correct` or `wrong` where the row brings the right `calls`; else `well-formed`, `malformed` (at least one call cannot be
    made) or `no calls`. `unscorable` says that the row's own schemas or right calls cannot be used. Raises `ConfigError` on reading a row
    that is not of this shape.
    """
    for row in rows:
        yield _graded(row)


def _graded(row: Mapping[str, Any]) -> dict[str, Any]:
    text, tools, name = row.get("text"), row.get("tools"), row.get("format", "hermes")
    if not isinstance(text, str) or not isinstance(tools, list):
        raise ConfigError(f"a row to read has `text` and a list `tools`; got {shown(text)} and {shown(tools)} (columns: {', '.join(row)})")
    if name not in FORMATS:
        raise ConfigError(f"`format` may be {', '.join(FORMATS)}; got {shown(name)}")
    if fault := _tools_fault(tools):
        return {"calls": [], "verdict": "unscorable", "reason": fault}
    turn = read_turn(text, tools, thinking=bool(row.get("thinking", False)), tool_format=FORMATS[name])
    faults = [call.message for call in turn.calls if isinstance(call, Malformed)]
    calls = [
        {"malformed": call.reason} if isinstance(call, Malformed) else {"name": call.name, "arguments": call.arguments}
        for call in turn.calls
    ]
    if "calls" in row:
        verdict, reason = _compared(calls, row["calls"], faults)
    else:
        verdict, reason = ("malformed" if faults else "well-formed" if calls else "no calls"), "; ".join(faults)
    return {"calls": calls, "verdict": verdict, "reason": reason}


def _compared(calls: list[dict[str, Any]], right: Any, faults: list[str]) -> tuple[str, str]:
    if not isinstance(right, list) or not all(isinstance(call, dict) for call in right):
        return "unscorable", f"`calls` is a list of objects, got {shown(right)}"
    if exactly(calls, right):
        return "correct", "; ".join(faults)
    if len(calls) != len(right):
        return "wrong", f"{len(right)} calls are right, {len(calls)} were read"
    at = next(at for at, pair in enumerate(zip(calls, right, strict=True)) if not exactly(*pair))
    return "wrong", f"call {at} was read as {shown(calls[at])}; right is {shown(right[at])}"


def _tools_fault(tools: list[Any]) -> str:
    """Why tools cannot be used; empty where they can."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return f"a tool is an object with a name, got {shown(tool)}"
        try:
            Draft202012Validator.check_schema(function.get("parameters") or {})
        except SchemaError as error:
            return f"the parameters of {function['name']} are no JSON schema: {error.message[:200]}"
    return ""
