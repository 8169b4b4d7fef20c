"""Tools whose JSON schema is given: the schema checked once, arguments held against all of it.

`agentrl.rollout.arguments` moves arguments towards the declared types and leaves other keywords alone; here the whole schema must hold
(lengths, ranges, patterns). Nothing is ever fetched: a reference must point into the schema itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError
from agentrl.rollout.arguments import Unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MOST_FAULTS = 3
MOST_FAULT_CHARS = 200


def checked_schema(name: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's parameters as the schema of an object. Raises `ConfigError`.

    Args:
        name: of the tool, for messages.
        parameters: as given.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(name, str) or not name:
        raise ConfigError(f"a tool is called {name!r}; allowed: text that a model can write")
    schema = dict(parameters)  # in the order that it was given, which is how the model reads it
    schema.setdefault("type", "object")
    schema.setdefault("properties", {})
    if schema["type"] != "object":
        raise ConfigError(
            f"tool {name!r}: its parameters have type {schema['type']!r}; allowed: 'object', whose properties are the arguments"
        )
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(f"tool {name!r}: its parameters are no JSON schema: {error.message[:MOST_FAULT_CHARS]}") from None
    for reference in _references(schema):
        if not _points_into(schema, reference):
            raise ConfigError(f"tool {name!r}: its parameters refer to {reference!r}; allowed: places of the schema itself, '#/$defs/...'")
    return schema


def fitting(schema: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that returns arguments which the whole schema takes, and raises `Unfit` for others."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)

    def fit(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            faults = [_fault(error) for error, _ in zip(validator.iter_errors(arguments), range(MOST_FAULTS), strict=False)]
        except RecursionError:
            raise Unfit("arguments are nested too deeply") from None
        if faults:
            raise Unfit("; ".join(faults))
        return arguments

    return fit


def _fault(error: Any) -> str:
    where = ".".join(map(str, error.absolute_path)) or "arguments"
    return f"{where}: {error.message[:MOST_FAULT_CHARS]}"


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from _references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _references(inner)


def _points_into(schema: Any, reference: str) -> bool:
    if reference == "#":
        return True
    found = schema
    for part in reference.removeprefix("#/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return reference.startswith("#/")
