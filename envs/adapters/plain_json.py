"""Python values as JSON and back: what a library keeps with a task travels in the task's row and returns as it was."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from agentrl.errors import EnvironmentFailure


def packed(value: Any) -> Any:
    """A value as JSON. Tuples, and mappings with keys other than text, become objects of one key that `unpacked` knows.

    Raises `EnvironmentFailure` for a value of another type.
    """
    if isinstance(value, Enum):
        return packed(value.value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple):
        return {"tuple": [packed(item) for item in value]}
    if isinstance(value, list):
        return [packed(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and value.keys() not in ({"tuple"}, {"map"}):
            return {key: packed(item) for key, item in value.items()}
        return {"map": [[packed(key), packed(item)] for key, item in value.items()]}
    raise EnvironmentFailure(f"a task holds {value!r:.80}, of type {type(value).__name__}; only JSON's types and tuples can travel with it")


def unpacked(value: Any) -> Any:
    """What `packed` was given."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tuple"}:
        return tuple(unpacked(value["tuple"]))
    if value.keys() == {"map"}:
        return {unpacked(key): unpacked(item) for key, item in value["map"]}
    return {key: unpacked(item) for key, item in value.items()}
