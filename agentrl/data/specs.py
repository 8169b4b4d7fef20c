"""Which dataset is meant: `path?split=train[:1000]&name=config`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

from agentrl.errors import ConfigError

_KEYS = ("split", "name", "revision")
_PART = re.compile(r"(?P<name>[\w.-]*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
ROLES = {"train": ("train", "training"), "eval": ("eval", "validation", "valid", "val", "dev", "test", "evaluation")}
"""What the splits for training and for evaluation are called, those that are looked for first in front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPart:
    """A split, or a stretch of one."""

    name: str = ""
    """Empty: the one that the run's use of the dataset names."""
    start: str | None = None
    """A number of rows, from the end where it is negative, or a percentage; None is the first row."""
    stop: str | None = None

    @property
    def whole(self) -> bool:
        """Whether no stretch is asked for."""
        return self.start is None and self.stop is None

    def window(self, length: int) -> range:
        """The rows of the stretch, among `length`."""
        return range(length)[slice(_bound(self.start, length), _bound(self.stop, length))]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """A dataset as a run file names it."""

    text: str
    """As it was written."""
    path: str
    """A file, a folder, or a name on the Hub."""
    split: tuple[SplitPart, ...] = (SplitPart(),)
    name: str | None = None
    """Of a dataset's configuration on the Hub."""
    revision: str | None = None
    """Of the dataset on the Hub."""

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Read `path?split=...&name=...`; a path that exists as it is written is taken whole. Raises `ConfigError`."""
        path, asked, query = text.strip().partition("?")
        if not asked or Path(text).exists():
            path, query = text.strip(), ""
        if not path:
            raise ConfigError(f"dataset {text!r} names no file, folder or Hub dataset")
        given: dict[str, str] = {}
        for pair in filter(None, query.split("&")):
            key, _, value = pair.partition("=")
            if key not in _KEYS or not value or key in given:
                close = get_close_matches(key, _KEYS, n=1)
                hint = f" (did you mean {close[0]}?)" if close and close[0] != key else ""
                wrong = "is given twice" if key in given else "has no value" if key in _KEYS else f"is not known{hint}"
                raise ConfigError(f"dataset {text!r}: `{key}` {wrong}; behind the path stand {', '.join(f'{one}=...' for one in _KEYS)}")
            given[key] = unquote(value)
        split = _parse_split(given.pop("split"), text) if "split" in given else (SplitPart(),)
        return cls(text=text, path=path, split=split, **given)


def _parse_split(value: str, text: str) -> tuple[SplitPart, ...]:
    parts = []
    for one in value.split("+"):
        found = _PART.fullmatch(one.strip())
        if found is None or not one.strip():
            raise ConfigError(f"dataset {text!r}: split {one!r} is not of the form train, train[:1000], train[10%:], or train+test")
        parts.append(SplitPart(name=found["name"], start=found["start"], stop=found["stop"]))
    return tuple(parts)


def choose_split(part: SplitPart, role: str, there: list[str], spec: DatasetSpec) -> str:
    """The name of the split that is meant, among those that there are. Raises `ConfigError` naming them.

    Args:
        part: what the spec asks for.
        role: "train" or "eval", what the dataset is used for.
        there: the splits of the dataset.
        spec: for the message.
    """
    if part.name:
        found = part.name if part.name in there else None
    else:
        found = next((name for name in ROLES[role] if name in there), None)
        found = there[0] if found is None and role == "train" and len(there) == 1 else found
    if found is None:
        wanted = f"no split {part.name!r}" if part.name else f"no split for {'training' if role == 'train' else 'evaluation'}"
        cure = f"name one, as in {spec.path}?split={(there or ['train'])[0]}"
        raise ConfigError(f"dataset {spec.text!r} has {wanted}; there are {', '.join(there) or 'none'}: {cure}")
    return found


def _bound(given: str | None, length: int) -> int | None:
    """A stretch's bound in rows; a percentage is rounded to the nearest row."""
    if given is None:
        return None
    return round(int(given[:-1]) * length / 100) if given.endswith("%") else int(given)
