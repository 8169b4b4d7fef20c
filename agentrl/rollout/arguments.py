"""Arguments of a tool call against the tool's JSON schema: moved towards the declared types where nothing is lost, refused otherwise.

The schema decides, not the value: `"42"` is 42 where an integer is declared, and `"020"` stays a string where a string is. Keywords that
are not known here are left to the tool itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MOST_STEPS = 100_000
"""A value costs one step a schema it is held against. Alternatives within alternatives multiply, and a model picks the depth."""
MOST_REFERENCES = 32
"""References that point at references; more of them are a circle."""


class Unfit(ValueError):
    """A value does not fit its schema, and no lossless reading of it does; the message is for the model."""


class _TooMuch(Unfit):
    """Not to be taken for a choice that does not fit."""


def coerce(schema: Mapping[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the schema declares them. Raises `Unfit`."""
    try:
        fitted: dict[str, Any] = _Coercion(schema).value(schema, arguments, "arguments")
    except RecursionError:
        raise Unfit("arguments are nested too deeply") from None
    return fitted


def refuse_constant(name: str) -> Any:
    """For `json`: NaN and Infinity are not JSON."""
    raise ValueError(f"{name} is not JSON")


def decoded(text: str) -> Any:
    """The JSON value that a string holds; the string itself where it holds none."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return text


def kind_of(value: Any) -> str:
    """A JSON value's type, for messages."""
    return next((name for kind, name in _KINDS.items() if _FITS[kind](value)), type(value).__name__)


def shown(value: Any) -> str:
    """A JSON value for messages, cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def exactly(first: Any, second: Any) -> bool:
    """Whether two JSON values are the same, types included: True is not 1."""
    if type(first) is not type(second):
        return False
    if isinstance(second, dict):
        return first.keys() == second.keys() and all(exactly(first[key], second[key]) for key in second)
    if isinstance(second, list):
        return len(first) == len(second) and all(map(exactly, first, second))
    return bool(first == second)


class _Coercion:
    """Moves values towards their declared types: a string is read as JSON only where something else than a string is declared."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MOST_STEPS

    def value(self, schema: Any, value: Any, where: str) -> Any:
        """The value that fits the schema, or `Unfit`. Keywords that are not known here are left to the tool itself."""
        self._left -= 1
        if self._left < 0:
            raise _TooMuch("arguments are too large, or their schema has too many alternatives")
        for _ in range(MOST_REFERENCES):
            if not isinstance(schema, dict):
                return value
            if "$ref" not in schema:
                break
            schema = self._resolve(schema["$ref"])
        choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("type")
        if isinstance(choices, list):
            return self._any_of([{**schema, "type": choice} if isinstance(choice, str) else choice for choice in choices], value, where)
        allowed = [schema["const"]] if "const" in schema else schema.get("enum")
        if allowed is not None:
            return self._one_of(allowed, value, where)
        kind = schema.get("type")
        if not isinstance(kind, str) or kind not in _FITS:
            return value
        fitted = _fitted(kind, value)
        if fitted is _NOTHING:
            raise Unfit(f"{where} must be {_KINDS[kind]}, got {shown(value)}")
        if kind == "object":
            return self._object(schema, fitted, where)
        if kind == "array":
            return self._array(schema, fitted, where)
        return fitted

    def _resolve(self, reference: Any) -> Any:
        """What a reference within the schema points at; anything fits one that points nowhere."""
        found: Any = self._root
        for part in str(reference).removeprefix("#").removeprefix("/").split("/") if reference != "#" else ():
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
        return found

    def _any_of(self, choices: list[Any], value: Any, where: str) -> Any:
        """The value by the first choice that takes it as it is; else by the first that it can be moved towards."""
        faults: list[str] = []
        moved = _NOTHING
        for choice in choices:
            try:
                fitted = self.value(choice, value, where)
            except _TooMuch:
                raise
            except Unfit as unfit:
                faults.append(str(unfit))
                continue
            if exactly(fitted, value):
                return fitted
            moved = fitted if moved is _NOTHING else moved
        if moved is _NOTHING:
            raise Unfit("; or ".join(dict.fromkeys(faults)))
        return moved

    def _array(self, schema: Mapping[str, Any], value: list[Any], where: str) -> list[Any]:
        heads = schema.get("prefixItems")
        heads = heads if isinstance(heads, list) else []
        rest = [schema.get("items")] * (len(value) - len(heads))
        schemas = zip([*heads[: len(value)], *rest], value, strict=True)
        return [self.value(inner, item, f"{where}[{index}]") for index, (inner, item) in enumerate(schemas)]

    def _one_of(self, allowed: Sequence[Any], value: Any, where: str) -> Any:
        readings = [value, decoded(value)] if isinstance(value, str) else [value]
        for reading in readings:
            for item in allowed:
                if item == reading and isinstance(item, bool) == isinstance(reading, bool):
                    return item
        raise Unfit(f"{where} must be one of {', '.join(map(shown, allowed))}, got {shown(value)}")

    def _object(self, schema: Mapping[str, Any], value: dict[str, Any], where: str) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        for name in schema.get("required") or ():
            if name not in value:
                raise Unfit(f"{where} lack {name!r}; needed: {', '.join(schema['required'])}")
        extra = schema.get("additionalProperties", True)
        fitted: dict[str, Any] = {}
        for name, item in value.items():
            if name not in properties and extra is False:
                raise Unfit(f"{where} hold an unknown {name!r}; known: {', '.join(properties) or 'none'}")
            fitted[name] = self.value(properties.get(name, extra), item, name if where == "arguments" else f"{where}.{name}")
        return fitted


_NOTHING: Any = object()
_KINDS = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "a boolean",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_FITS: dict[str, Any] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}


def _fitted(kind: str, value: Any) -> Any:
    """The value as `kind`, `_NOTHING` where it cannot be read as one without loss."""
    if _FITS[kind](value):
        return value
    if isinstance(value, str) and kind != "string":
        if kind == "boolean" and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        inner = decoded(value.strip())
        return _NOTHING if isinstance(inner, str) else _fitted(kind, inner)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return _NOTHING
