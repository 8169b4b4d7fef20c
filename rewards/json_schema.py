"""A reward for JSON of a given form.

Run file: `agentrl.rewards.json_schema:valid_json` (any JSON), `agentrl.rewards.json_schema:fits?schema=answer.schema.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.rewards.extract import END_THINK, completion_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MOST_CHARS = 1_000_000
"""A longer text does not fit."""
MOST_DEPTH = 100
"""Brackets of a document that fits; deeper ones would exhaust the validator's stack."""
_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def fits(
    schema: Mapping[str, Any] | str, *, fenced: bool = True, invalid: float = 0.0, parses: float | None = None
) -> Callable[..., list[float | None]]:
    """Make a reward: 1 where the completion, after its thinking, is JSON that fits the schema.

    Args:
        schema: a JSON schema, or the path of a file with one. References must lie within it.
        fenced: whether the JSON may also stand in a block of three backticks, of which there must be exactly one, with text around it.
        invalid: the reward of what is not JSON.
        parses: the reward of JSON that does not fit; by default that of what is none.
    Raises: `ValueError` for a schema that is none, or that refers to another document.
    """
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing.exceptions import Unresolvable

    known = _schema(schema)
    try:
        kind = validator_for(known)
        kind.check_schema(known)
        validator = kind(known)
        for reference in _references(known):
            if not reference.startswith("#"):
                raise ValueError(f"the schema refers to {reference!r}, outside of itself; put that part under $defs")
            validator._resolver.lookup(reference)  # a broken one would raise on the first document that reaches it
    except SchemaError as error:
        raise ValueError(f"the schema is none: {error.message} (at {error.json_path})") from None
    except Unresolvable as error:
        raise ValueError(f"the schema refers to {error.ref!r}, which it does not have") from None

    def json_fits(*, completions: Sequence[Any], **_: Any) -> list[float | None]:
        """1 for what fits."""
        return [one(completion_text(completion)) for completion in completions]

    def one(text: str) -> float:
        document = read_json(text, fenced=fenced)
        if document is None:
            return invalid
        return 1.0 if validator.is_valid(document[0]) else invalid if parses is None else parses

    return json_fits


def valid_json(*, completions: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the completion, after its thinking, is JSON, bare or in the one fenced block; else 0."""
    return [float(read_json(completion_text(completion), fenced=True) is not None) for completion in completions]


def read_json(text: str, *, fenced: bool) -> tuple[Any] | None:
    """The document in a text, alone in a tuple as it may itself be null; None where there is none.

    Numbers that JSON does not have, such as NaN, and objects that name a key twice are refused.
    """
    spoken = text.rpartition(END_THINK)[2].strip()
    if len(spoken) > MOST_CHARS:
        return None
    blocks = _FENCED.findall(spoken) if fenced and "```" in spoken else []
    return parse_json(blocks[0] if len(blocks) == 1 else spoken)


def parse_json(text: str) -> tuple[Any] | None:
    """The document that all of a text is, alone in a tuple; None where it is none, by the rules of `read_json`."""
    if len(text) > MOST_CHARS or _depth(text) > MOST_DEPTH:
        return None
    try:
        return (json.loads(text, parse_constant=_refuse, object_pairs_hook=_object),)
    except (ValueError, RecursionError):
        return None


def _depth(text: str) -> int:
    """An upper bound of how deep brackets nest."""
    deepest = depth = 0
    for mark in re.findall(r"[\[{\]}]", text):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _schema(schema: Mapping[str, Any] | str) -> dict[str, Any]:
    if not isinstance(schema, str):
        return dict(schema)
    try:
        read = json.loads(Path(schema).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the schema {schema}: {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"the schema {schema} is no JSON object")
    return read


def _references(part: Any) -> Iterator[str]:
    """Every reference in a schema; also a property that is only named like one, which is then refused if it is remote."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in _REFERENCES and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
