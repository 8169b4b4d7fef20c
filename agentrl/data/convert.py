"""From the schema that a row has to one that is asked for.

    from                  to
    prompt_completion     language_modeling, prompt_only
    preference            language_modeling, prompt_completion, prompt_only, unpaired_preference (two rows), with or without a prompt
    unpaired_preference   language_modeling, prompt_completion (rows that are labelled true, in both), prompt_only
    stepwise              language_modeling, prompt_completion (rows with no wrong step, in both), prompt_only, unpaired_preference

A conversion makes of one row none, one or two, and never changes the row it is given. Columns that no schema names are kept; `margin`,
`reference` and a rejected completion go where there is no pair left. These are the ways that TRL ships or documents
(https://huggingface.co/docs/trl/dataset_formats); nothing leads to a schema that says more than the row does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from agentrl.data.csv_rows import from_cells
from agentrl.data.faults import RowFault
from agentrl.data.message_rules import json_value
from agentrl.data.row_rules import LISTED
from agentrl.data.schemas import ACCEPTED, Found, Schema, check_row
from agentrl.data.sharegpt import as_messages
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from agentrl.examples import DataKind

    Row = dict[str, Any]

_OF_PAIRS = ("chosen", "rejected", "margin", "reference")


def canonical(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Row:
    """The row with the names and values that schemas know.

    Columns are renamed or left out, cells of a CSV file typed, messages read from their JSON, and ShareGPT turns made messages.

    Args:
        row: as it was read.
        columns: `data.columns`, their names to ours; an empty name leaves a column out.

    Raises `ConfigError` where two columns would have one name, and `RowFault` for a text that is no JSON and a turn that is no message.
    """
    return as_messages(_decoded(from_cells(_renamed(row, columns) if columns else row)))


def check_renames(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise `ConfigError` where `data.columns` names a column that none of the rows has.

    Args:
        columns: `data.columns`.
        rows: the first of a dataset, as they were read.
    """
    there = dict.fromkeys(name for row in rows for name in row)
    for name in columns:
        if name not in there:
            close = get_close_matches(name, there, n=1)
            hint = f" (did you mean `{close[0]}`?)" if close else ""
            raise ConfigError(f"data.columns renames `{name}`, and the dataset has {', '.join(f'`{one}`' for one in there)}{hint}")


def extract_prompt(row: Mapping[str, Any]) -> Row:
    """A preference whose prompt is what `chosen` and `rejected` begin with, as one with a `prompt`.

    Of messages it is the longest common beginning. Of texts too, less one space at its end, which belongs to the word behind it. Raises
    `RowFault` where nothing of one is left behind it.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    size = _common_length(chosen, rejected)
    for column in ("chosen", "rejected"):
        if size == len(row[column]):
            raise RowFault(field=column, expected="a completion behind what `chosen` and `rejected` share", got="nothing behind it")
    if isinstance(chosen, str) and chosen[size - 1 : size] == " ":
        size -= 1
    others = {name: value for name, value in row.items() if name != "prompt"}
    return {"prompt": chosen[:size], **others, "chosen": chosen[size:], "rejected": rejected[size:]}


def join_prompt(row: Mapping[str, Any]) -> Row:
    """A preference with a `prompt` as one whose `chosen` and `rejected` hold it: the inverse of `extract_prompt`."""
    others = {name: value for name, value in row.items() if name != "prompt"}
    return {**others, **{name: _joined(row["prompt"], row[name]) for name in ("chosen", "rejected")}}


def convert(row: Mapping[str, Any], found: Found, to: Schema, *, implicit: bool = False) -> list[Row]:
    """The rows of another schema that a checked row becomes; none where it is no example of that.

    Args:
        row: which keeps to `found`.
        found: its schema.
        to: the schema that is wanted.
        implicit: of a preference that is wanted: without a prompt.

    Raises `ConfigError` where no conversion leads there.
    """
    if found.schema == "preference" and found.implicit and not (to == "preference" and implicit):
        row = extract_prompt(row)
    made = _conversion(found, to)(row)
    return [join_prompt(one) for one in made] if to == "preference" and implicit and not found.implicit else made


def convertible(found: Found) -> list[Schema]:
    """The schemas that rows of a schema can be converted to."""
    return [to for schema, to in _CONVERSIONS if schema == found.schema]


def found_after(found: Found, to: Schema) -> Found:
    """What the rows have after `convert`."""
    return replace(found, schema=to, implicit=False)


def check_kind(kind: DataKind, found: Found, to: Schema | None = None) -> Found:
    """What the rows that `rows_for` returns have. Raises `ConfigError` where an objective does not take such rows.

    Args:
        kind: what the objective takes.
        found: the schema of the dataset.
        to: the schema that was asked for, with `data.convert`.
    """
    if to is not None:
        _conversion(found, to)
        found = found_after(found, to)
    if found.schema not in ACCEPTED[kind]:
        raise ConfigError(_refusal(kind, found))
    if kind == "unpaired":
        return found_after(found, "unpaired_preference")
    if kind == "prompts":
        return found_after(found, "prompt_only")
    return replace(found, implicit=False)


def rows_for(kind: DataKind, row: Mapping[str, Any], found: Found, to: Schema | None = None) -> list[Row]:
    """The rows that an objective learns from, made of a checked row; none where the row is no example of what was asked for.

    An implicit prompt is extracted, a preference becomes two unpaired rows, labels become booleans. What loses more has to be asked for.

    Args:
        kind: what the objective takes.
        row: which keeps to `found`.
        found: its schema.
        to: convert to this schema first.

    Raises `ConfigError` as `check_kind` does, and `RowFault` where a row has no prompt to extract, or an empty one where that is all.
    """
    last = check_kind(kind, found, to)
    rows = [dict(row)] if to is None else convert(row, found, to)
    now = found if to is None else found_after(found, to)
    wanted = [_with_booleans(made) for one in rows for made in convert(one, now, last.schema)]
    if last.schema == "prompt_only" and now.schema != "prompt_only":
        for made in wanted:
            check_row(made, last)  # an empty prompt is fine before a completion only
    return wanted


def _conversion(found: Found, to: Schema) -> Callable[[Any], list[Row]]:
    """What makes rows of the one schema from rows of the other. Raises `ConfigError` where nothing does."""
    if to == found.schema:
        return lambda row: [dict(row)]
    if (found.schema, to) not in _CONVERSIONS:
        ways = convertible(found)
        possible = f"can be converted to {', '.join(ways)}" if ways else "cannot be converted to another schema"
        raise ConfigError(f"{found} rows cannot become {to}: they {possible}")
    return _CONVERSIONS[found.schema, to]


def _refusal(kind: DataKind, found: Found) -> str:
    takes = " or ".join(ACCEPTED[kind])
    ways = sorted((to for to in convertible(found) if to in ACCEPTED[kind]), reverse=True)  # with a prompt before without
    lost = {
        "preference": "which leaves the rejected completions out",
        "unpaired_preference": "which leaves out the rows that are labelled false",
        "stepwise": "which takes a wrong step for a wrong completion" if kind == "unpaired" else "which leaves out rows with a wrong step",
    }.get(found.schema, "")
    cure = f"; ask for it with data.convert={ways[0]}, {lost}" if ways else ", and no conversion leads there: choose another dataset"
    return f"the dataset has {found} rows, and the objective learns from {kind} data ({takes} rows){cure}"


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    renamed: Row = {}
    for name, value in row.items():
        new = columns.get(name, name)
        if new in renamed:
            both = " and ".join(f"`{old}`" for old in row if columns.get(old, old) == new)
            raise ConfigError(f'data.columns makes `{new}` of {both}: leave one out by giving it an empty name, as in {{"{name}": ""}}')
        if new:
            renamed[new] = value
    return renamed


def _decoded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with lists of messages where it had the JSON of such lists: Arrow has no better type for objects of different keys."""
    found = {}
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), str):
            found[name] = json_value(row[name], name, "a list of messages, or its JSON")
    for name in ("prompt", "completion", "chosen", "rejected", "reference"):
        if isinstance(row.get(name), str) and LISTED.match(row[name]):
            found[name] = _list_of(row[name])
    return {**row, **found} if found else row


def _list_of(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text  # as Python shows a list, which the check of the row refuses
    return value if isinstance(value, list) else text


def _common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    for size, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return size
    return min(len(one), len(other))


def _joined(prompt: Any, completion: Any) -> Any:
    """A prompt and what follows it; messages as a new list."""
    return prompt + completion if isinstance(prompt, str) else [*prompt, *completion]


def _without(row: Mapping[str, Any], *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _whole(row: Mapping[str, Any], completion: Any, *names: str) -> Row:
    """A row of language modelling: the prompt with a completion, and what is left of the row."""
    whole = _joined(row["prompt"], completion)
    return {"text" if isinstance(whole, str) else "messages": whole, **_without(row, "prompt", "text", "messages", *names)}


def _unpaired(row: Row) -> list[Row]:
    others = _without(row, "prompt", "completion", "label", *_OF_PAIRS)
    return [{"prompt": row["prompt"], "completion": row[name], "label": name == "chosen", **others} for name in ("chosen", "rejected")]


def _completed(row: Row) -> Row:
    """A stepwise row with its steps as one completion, which is right if each of them is."""
    joined = {"prompt": row["prompt"], "completion": "".join(row["completions"]), "label": all(row["labels"])}
    return {**joined, **_without(row, "prompt", "completions", "labels")}


_CONVERSIONS: dict[tuple[Schema, Schema], Callable[[Any], list[Row]]] = {
    ("prompt_completion", "language_modeling"): lambda row: [_whole(row, row["completion"], "completion")],
    ("prompt_completion", "prompt_only"): lambda row: [_without(row, "completion")],
    ("preference", "language_modeling"): lambda row: [_whole(row, row["chosen"], *_OF_PAIRS)],
    ("preference", "prompt_completion"): lambda row: [
        {"prompt": row["prompt"], "completion": row["chosen"], **_without(row, "prompt", "completion", *_OF_PAIRS)}
    ],
    ("preference", "prompt_only"): lambda row: [_without(row, *_OF_PAIRS)],
    ("preference", "unpaired_preference"): _unpaired,
    ("unpaired_preference", "language_modeling"): lambda row: [_whole(row, row["completion"], "completion", "label")] * bool(row["label"]),
    ("unpaired_preference", "prompt_completion"): lambda row: [_without(row, "label")] * bool(row["label"]),
    ("unpaired_preference", "prompt_only"): lambda row: [_without(row, "completion", "label")],
    ("stepwise", "language_modeling"): lambda row: [_whole(row, "".join(row["completions"]), "completions", "labels")] * all(row["labels"]),
    ("stepwise", "prompt_completion"): lambda row: [_without(_completed(row), "label")] * all(row["labels"]),
    ("stepwise", "prompt_only"): lambda row: [_without(row, "completions", "labels")],
    ("stepwise", "unpaired_preference"): lambda row: [_completed(row)],
}


def _with_booleans(row: Row) -> Row:
    """Labels given as 1 and 0 as what they mean; a tokenized row's `labels` are token ids and stay."""
    if isinstance(row.get("label"), int):
        row["label"] = bool(row["label"])
    if "completions" in row and "labels" in row:
        row["labels"] = [bool(label) for label in row["labels"]]
    return row
