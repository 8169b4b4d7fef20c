"""Values that fit a JSON schema, and tool calls that do not: both made from the schemas of an environment's tools."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

MOST_DEPTH = 4
HUGE_CHARS = 1_000_000
NESTED = 5_000
WORDS = ("", "0", "a", "apple", "yes", "left", "42", "-1", "3.5", "/etc/passwd", "../x", "\u00e9\u4e2d\U0001f600", "None", "x" * 200)
PLAIN_KINDS = ("string", "integer", "number", "boolean", "array", "object", "null")
WRONG: Mapping[str, Sequence[Any]] = {
    "string": (7, ["a"], {"a": 1}),
    "integer": ("many", 1.5, True, [1]),
    "number": ("many", True, {"a": 1}),
    "boolean": ("perhaps", 2, []),
    "array": ("a", 1, {"a": 1}),
    "object": ("a", 1, [1]),
    "null": ("a", 1),
}
"""Values of other types than the declared one."""
ODD_JSON = (
    '"\\ud800"',
    '"a\\u0000b"',
    "NaN",
    "-Infinity",
    "1e999",
    str(2**63 - 1),
    str(10**40),
    "null",
    '"\\u202e\\ufeff"',
    "[" * NESTED + "]" * NESTED,
    '{"a":' * NESTED + "1" + "}" * NESTED,
    json.dumps("z" * HUGE_CHARS),
)
"""Values that are no JSON, that no machine number holds, or that are merely large."""


def fitting_value(schema: Any, stream: random.Random, words: Sequence[str] = WORDS, *, root: Any = None, depth: int = 0) -> Any:
    """A value drawn at random that fits a schema, as far as types, choices and ranges go.

    Args:
        schema: of the value.
        stream: of chance.
        words: for texts.
        root: what references point into; by default the schema itself.
        depth: how deep the value lies; below `MOST_DEPTH` lists are empty.
    """
    root = schema if root is None else root
    for _ in range(8):
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        schema = _referred(root, str(schema["$ref"]))
    if not isinstance(schema, dict):
        return stream.choice(words)
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices:
        return stream.choice(choices)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return fitting_value(stream.choice(options), stream, words, root=root, depth=depth + 1)
    kind = schema.get("type") or stream.choice(PLAIN_KINDS[:4])
    kind = stream.choice(kind) if isinstance(kind, list) else kind
    if kind == "object":
        return _an_object(schema, stream, words, root, depth)
    if kind == "array":
        return _an_array(schema, stream, words, root, depth)
    return _a_scalar(kind, schema, stream, words)


def call_text(name: str, arguments: Any) -> str:
    """A tool call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def random_call(tools: Sequence[Mapping[str, Any]], stream: random.Random, words: Sequence[str] = WORDS) -> str:
    """A call of one of the tools with arguments that fit."""
    function = function_of(stream.choice(tools))
    return call_text(function["name"], fitting_value(parameters_of(function), stream, words))


def bad_calls(tool: Mapping[str, Any], stream: random.Random) -> list[str]:
    """Calls of a tool that a careless or hostile model may write; some of them fit its schema, with values nobody expects."""
    function = function_of(tool)
    schema = parameters_of(function)
    name = json.dumps(function["name"])
    fit = fitting_value(schema, stream)
    properties = schema.get("properties") or {}
    whole = ["[]", '"text"', "null", "{", json.dumps({**fit, "agentrl_unknown": 1}), json.dumps(json.dumps(fit))]
    whole += [json.dumps({key: value for key, value in fit.items() if key != left_out}) for left_out in schema.get("required") or ()]
    for key, inner in properties.items():
        kind = inner.get("type") if isinstance(inner, dict) else None
        values = [json.dumps(value) for value in WRONG.get(kind if isinstance(kind, str) else "", ())]
        whole += [_with(fit, key, value) for value in values]
    for key in list(properties)[:1]:
        whole += [_with(fit, key, value) for value in ODD_JSON]
    calls = [f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>' for arguments in whole]
    return [
        *calls,
        f'<tool_call>{{"name": {name}}}</tool_call>',
        call_text("agentrl_no_such_tool", {}),
        '<tool_call>{"name": null}</tool_call>',
    ]


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of a tool's schema."""
    function: Mapping[str, Any] = tool.get("function", tool)
    return function


def parameters_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments."""
    return {"type": "object", **(function.get("parameters") or {})}


def _with(fit: Mapping[str, Any], key: str, value: str) -> str:
    """An object as JSON, with this text as the value of a key, JSON or not."""
    rest = [f"{json.dumps(other)}: {json.dumps(inner)}" for other, inner in fit.items() if other != key]
    return "{" + ", ".join([f"{json.dumps(key)}: {value}", *rest]) + "}"


def _referred(root: Any, reference: str) -> Any:
    found = root
    for part in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return found


def _an_object(schema: Mapping[str, Any], stream: random.Random, words: Sequence[str], root: Any, depth: int) -> dict[str, Any]:
    needed = set(schema.get("required") or ())
    properties = schema.get("properties") or {}
    given = [name for name in properties if name in needed or (depth < MOST_DEPTH and stream.random() < 0.5)]
    return {name: fitting_value(properties[name], stream, words, root=root, depth=depth + 1) for name in given}


def _an_array(schema: Mapping[str, Any], stream: random.Random, words: Sequence[str], root: Any, depth: int) -> list[Any]:
    heads = schema.get("prefixItems") if isinstance(schema.get("prefixItems"), list) else []
    fewest = int(schema.get("minItems", len(heads or ())))
    most = min(int(schema.get("maxItems", fewest + 3)), fewest + 3)
    count = fewest if depth >= MOST_DEPTH else stream.randint(fewest, max(fewest, most))
    inner = [*(heads or ()), *[schema.get("items", {})] * count][:count]
    return [fitting_value(one, stream, words, root=root, depth=depth + 1) for one in inner]


def _a_scalar(kind: str, schema: Mapping[str, Any], stream: random.Random, words: Sequence[str]) -> Any:
    if kind == "boolean":
        return stream.random() < 0.5
    if kind == "null":
        return None
    if kind in ("integer", "number"):
        low = float(schema.get("minimum", schema.get("exclusiveMinimum", -3)))
        high = float(schema.get("maximum", schema.get("exclusiveMaximum", low + 100)))
        low, high = low + ("exclusiveMinimum" in schema), high - ("exclusiveMaximum" in schema)
        step = schema.get("multipleOf", 1)
        whole = stream.randint(int(low), max(int(low), int(high)))
        return round(whole / step) * step if kind == "integer" else stream.choice((whole, whole + 0.25 if whole + 0.25 <= high else whole))
    text = stream.choice(words)
    fewest, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", max(len(text), 1)))
    return text.ljust(fewest, "a")[: max(most, fewest)]
