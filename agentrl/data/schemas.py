"""The schemas of a row: which one it has, and whether it keeps to it.

    language_modeling     text | messages
    prompt_only           prompt
    prompt_completion     prompt, completion
    preference            [prompt,] chosen, rejected   (without a prompt the two share their beginning)
    unpaired_preference   prompt, completion, label
    stepwise              prompt, completions, labels
    tokenized             input_ids [, labels | completion_mask | assistant_masks]

A column is a text (standard) or a list of messages (conversational). Beside them a row may have `tools`, `chat_template_kwargs`, `margin`,
`weight`, `reference` and `privileged_context`; further columns are left alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from agentrl.data.faults import RowFault
from agentrl.data.nearest import ambiguous, unknown
from agentrl.data.row_rules import CHECKS, check_extras
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agentrl.examples import DataKind

Schema = Literal["language_modeling", "prompt_only", "prompt_completion", "preference", "unpaired_preference", "stepwise", "tokenized"]
SCHEMAS: tuple[Schema, ...] = get_args(Schema)
NEEDED: dict[Schema, tuple[tuple[str, ...], ...]] = {
    "language_modeling": (("text",), ("messages",)),
    "prompt_only": (("prompt",),),
    "prompt_completion": (("prompt", "completion"),),
    "preference": (("chosen", "rejected"),),
    "unpaired_preference": (("prompt", "completion", "label"),),
    "stepwise": (("prompt", "completions", "labels"),),
    "tokenized": (("input_ids",),),
}
"""The columns of each schema, alternatives beside each other."""
_SHADOWS: dict[Schema, tuple[Schema, ...]] = {
    "prompt_completion": ("prompt_only",),
    "preference": ("prompt_only",),
    "unpaired_preference": ("prompt_only", "prompt_completion"),
    "stepwise": ("prompt_only",),
    "language_modeling": ("prompt_only",),
    "tokenized": ("prompt_only",),
}
"""Schemas that a row of the first has the columns of as well, and which it is not."""
ACCEPTED: dict[DataKind, tuple[Schema, ...]] = {
    "supervised": ("language_modeling", "prompt_completion", "tokenized"),
    "preference": ("preference",),
    "unpaired": ("unpaired_preference", "preference"),
    "stepwise": ("stepwise",),
    "prompts": ("prompt_only", "prompt_completion"),
}
"""What an objective takes, as it is or after a conversion that loses nothing it needs."""
MOST_LOOKED_AT = 100
"""Rows that decide the schema of a dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The schema of a row."""

    schema: Schema
    conversational: bool
    """Whether its texts are lists of messages."""
    implicit: bool = False
    """Of a preference: the prompt is what `chosen` and `rejected` have in common, whatever a column `prompt` says."""

    def __str__(self) -> str:
        style = "" if self.schema in {"stepwise", "tokenized"} else "conversational " if self.conversational else "standard "
        return f"{style}{self.schema}{' (implicit prompt)' if self.implicit else ''}"


def detect(row: Mapping[str, Any], kind: DataKind | None = None) -> Found:
    """The schema that a row's columns name.

    Args:
        row: with its columns under the names that schemas use, ShareGPT rows converted (`convert.canonical`).
        kind: what the objective takes, which decides between several schemas that the columns fit.

    Raises `ConfigError` where no schema fits, naming the nearest, or where several do.
    """
    fits = [schema for schema in SCHEMAS if any(all(name in row for name in names) for names in NEEDED[schema])]
    shadowed = {below for schema in fits for below in _SHADOWS.get(schema, ())}
    left = [schema for schema in fits if schema not in shadowed]
    wanted = [schema for schema in left if kind is not None and schema in ACCEPTED[kind]] or left
    if not wanted:
        raise unknown(row, NEEDED)
    if len(wanted) > 1 or (wanted == ["language_modeling"] and "text" in row and "messages" in row):
        raise ambiguous(row, {schema: NEEDED[schema] for schema in wanted})
    return _found(row, wanted[0])


def detect_all(rows: Iterable[Mapping[str, Any]], kind: DataKind | None = None) -> Found:
    """The schema that most of the first rows have, the earlier one of two that are as frequent.

    Raises `ConfigError` where none of them has any, with the message of the first.
    """
    counts: Counter[Found] = Counter()
    first: ConfigError | None = None
    for row in islice(rows, MOST_LOOKED_AT):
        try:
            counts[detect(row, kind)] += 1
        except ConfigError as error:
            first = first or error
    if counts:
        return counts.most_common(1)[0][0]  # the earliest of equals: a Counter keeps the order in which it met them
    raise first or ConfigError("the dataset has no rows")


def check_row(row: Mapping[str, Any], found: Found) -> None:
    """Raise `RowFault` where a row does not keep to its schema, with the field, what it must be and what it is."""
    for names in _columns(found, row):
        if names not in row:
            there = ", ".join(row) or "no columns"
            raise RowFault(field=names, expected=f"there, as in {found} rows", got=f"nothing: the row has {there}")
    CHECKS[found.schema](row, found.conversational, found.implicit)
    check_extras(row, found.conversational)


def notes(row: Mapping[str, Any], found: Found) -> Iterator[str]:
    """What is allowed in a row and worth knowing."""
    label = row.get("label") if found.schema == "unpaired_preference" else None
    labels = (row.get("labels") or [None]) if found.schema == "stepwise" else [label]
    if any(type(one) is int for one in labels):
        yield "labels are numbers, 0 read as false and 1 as true"
    if found.schema == "preference" and found.implicit and isinstance(row.get("prompt"), str):
        yield "the column `prompt` is not used: `chosen` and `rejected` hold the whole conversation"
    texts = found.schema == "preference" and not found.implicit and not found.conversational
    if texts and row["prompt"].strip() and all(row[column].startswith(row["prompt"]) for column in ("chosen", "rejected")):
        yield "completions begin with their prompt, which stands before them already"
    if row.get("prompt") == "":
        yield "prompts are empty: where the model begins texts with no token of its own, the first token of a completion is not trained"
    if found.conversational and isinstance(row.get("prompt"), list | tuple) and _ends_with_assistant(row["prompt"]):
        yield "prompts end with a message of the assistant's: what it completes is a further turn, and not the rest of that message"


def _columns(found: Found, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a row must have, of alternatives the ones that fit."""
    if found.schema == "language_modeling":
        return ("messages",) if found.conversational else ("text",)
    if found.schema == "preference" and not found.implicit:
        return ("prompt", "chosen", "rejected")
    return NEEDED[found.schema][0]


def _found(row: Mapping[str, Any], schema: Schema) -> Found:
    if schema == "language_modeling":
        return Found(schema=schema, conversational="messages" in row)
    if schema == "preference":
        conversational = _is_list(row["chosen"])
        # a prompt of text beside two conversations repeats what they begin with
        implicit = "prompt" not in row or row["prompt"] is None or (conversational and isinstance(row["prompt"], str))
        return Found(schema=schema, conversational=conversational, implicit=implicit)
    column = {"prompt_only": "prompt", "prompt_completion": "completion", "unpaired_preference": "completion"}.get(schema)
    return Found(schema=schema, conversational=column is not None and _is_list(row[column]))


def _ends_with_assistant(messages: Sequence[Any]) -> bool:
    return bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
