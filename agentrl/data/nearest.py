"""Messages about columns that fit no schema, or several."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Alternatives = Mapping[Any, Sequence[Sequence[str]]]

OTHER_NAMES = {
    "instruction": "prompt",
    "question": "prompt",
    "query": "prompt",
    "problem": "prompt",
    "input": "prompt",
    "response": "completion",
    "answer": "completion",
    "output": "completion",
    "target": "completion",
    "solution": "completion",
    "content": "text",
    "document": "text",
    "dialogue": "messages",
    "dialog": "messages",
    "conversation": "messages",
    "accepted": "chosen",
    "preferred": "chosen",
    "response_chosen": "chosen",
    "response_rejected": "rejected",
    "steps": "completions",
}
"""What other datasets call the columns of ours."""


def unknown(row: Iterable[str], schemas: Alternatives) -> ConfigError:
    """The error about columns that fit no schema: it names the nearest one and the renames that would make it fit."""
    there = list(row)
    options = [(schema, names) for schema, alternatives in schemas.items() for names in alternatives]
    # the most columns there, by name or by another name; of equals the one that misses fewer
    schema, names = max(options, key=lambda one: (_met(there, one[1]), -len(one[1])))
    shown = f"the columns {_quoted(there)}" if there else "no columns"
    if not _met(there, names):
        all_of = "; ".join(f"{one}: {_quoted(needs)}" for one, needs in options)
        return ConfigError(f"{shown} fit no schema. The schemas and their columns are {all_of}: rename yours with data.columns")
    renamed = _renames(there, names)
    missing = [name for name in names if name not in there and name not in renamed.values()]
    cure = [f"rename with data.columns={renamed}".replace("'", '"')] if renamed else []
    cure += [f"add {_quoted(missing)}"] if missing else []
    return ConfigError(f"{shown} fit no schema; the nearest is {schema}, which has {_quoted(names)}: {' and '.join(cure)}")


def ambiguous(row: Iterable[str], schemas: Alternatives) -> ConfigError:
    """The error about columns that fit more than one schema."""
    there = set(row)
    fitting = [(schema, names) for schema, alternatives in schemas.items() for names in alternatives if there.issuperset(names)]
    ways = [f"{schema} ({_quoted(names)})" for schema, names in fitting]
    return ConfigError(
        f"the columns {_quoted(row)} fit {' and '.join(ways)}: leave out the columns that are not meant, "
        'by giving them an empty name in data.columns, as in data.columns={"text": ""}'
    )


def _renames(there: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Columns that look like a missing one, under other names or misspelt; each once."""
    found: dict[str, str] = {}
    for name in names:
        if name in there:
            continue
        left = [old for old in there if old not in found and old not in names]
        plain = {old: old.strip().lower() for old in left}
        alike = set(get_close_matches(name, plain.values(), n=1, cutoff=0.75))
        close = [old for old in left if OTHER_NAMES.get(plain[old]) == name] or [old for old in left if plain[old] in alike]
        if close:
            found[close[0]] = name
    return found


def _met(there: Sequence[str], names: Sequence[str]) -> int:
    return sum(name in there for name in names) + len(_renames(there, names))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
