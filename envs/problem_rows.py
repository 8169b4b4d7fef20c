"""Rows of problems with golds: read from a file, a folder or the Hub, and brought to the same columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.envs.dataset import read_rows
from agentrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows come from: a file at `path`, or a split of a data set."""

    path: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "train"

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path) if self.path is not None else f"{self.dataset} ({self.split})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where a row has what: candidates in order, of which the first that the first row has is taken. `a.b` is `b` in the object `a`."""

    problem: Sequence[str]
    gold: Sequence[str]
    options: Sequence[str]


def read_source(source: Source) -> list[dict[str, Any]]:
    """All rows as they are. Raises `ConfigError` saying what was tried."""
    place = Path(source.path if source.path is not None else source.dataset or "")
    if source.path is not None or place.suffix in (".jsonl", ".parquet"):
        return _from_file(place)
    return _from_folder(place, source.split) if place.is_dir() else _from_hub(source)


def problems(source: Source, rows: Iterable[Mapping[str, Any]], columns: Columns) -> list[dict[str, Any]]:
    """The rows as `problem`, `gold`, `options` where there are any, and `id` where they have one.

    A gold that is missing is empty, for the audit to count. Raises `ConfigError` naming the row and its columns where there is no problem.
    """
    found: list[dict[str, Any]] = []
    chosen: Columns | None = None
    for number, row in enumerate(rows, start=1):
        where = f"{source.name}, row {number}"
        chosen = chosen or _chosen(where, row, columns)
        options = _options(_value(row, chosen.options[0])) if chosen.options else None
        gold = _gold(where, _value(row, chosen.gold[0]), options)
        one = {"problem": _problem(where, row, chosen.problem[0]), "gold": gold}
        found.append(one | ({} if options is None else {"options": options}) | ({"id": row["id"]} if "id" in row else {}))
    return found


def _from_file(path: Path) -> list[dict[str, Any]]:
    return _from_parquet([path]) if path.suffix == ".parquet" else read_rows(path, needs=(), called="the problems in")


def _from_parquet(paths: Sequence[Path]) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # comes with datasets

    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += parquet.read_table(path).to_pylist()
        except (OSError, ArrowException) as error:
            raise ConfigError(f"cannot read the problems in {path}: {error}") from error
    return rows


def _from_folder(folder: Path, split: str) -> list[dict[str, Any]]:
    """A folder that `datasets` saved, or one of parquet files: `SPLIT.parquet`, `SPLIT-00000-of-00003.parquet`, `SPLIT/*.parquet`."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        from datasets import DatasetDict, load_from_disk  # type: ignore[import-untyped]

        try:
            saved = load_from_disk(str(folder))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the data set saved in {folder}: {error}") from error
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise ConfigError(f"the data set saved in {folder} has no split {split!r}; it has: {', '.join(map(str, saved))}")
            saved = saved[split]
        return [dict(row) for row in saved]
    places = (folder, folder / "data", folder / split)
    files = sorted(path for place in places for path in place.glob("*.parquet") if place.name == split or _is_of(path, split))
    if not files:
        raise ConfigError(f"{folder} holds no saved data set and no parquet file of the split {split!r}; looked for {split}*.parquet")
    return _from_parquet(files)


def _is_of(path: Path, split: str) -> bool:
    return path.stem == split or path.stem.startswith((f"{split}-", f"{split}."))


def _from_hub(source: Source) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.dataset, source.config, split=source.split)
    except Exception as error:  # the boundary to the Hub, whose client raises some dozen types
        raise ConfigError(
            f"cannot load the data set {source.dataset!r}, configuration {source.config!r}, split {source.split!r}: "
            f"{type(error).__name__}: {error}; give a name on the Hub, or a folder or file on this machine"
        ) from error
    return [dict(row) for row in rows]


def _chosen(where: str, row: Mapping[str, Any], columns: Columns) -> Columns:
    named: dict[str, list[str]] = {}
    for what, candidates in (("problem", columns.problem), ("gold", columns.gold)):
        named[what] = [name for name in candidates if _has(row, name)][:1]
        if not named[what]:
            has = ", ".join(row) or "none"
            raise ConfigError(f"{where}: no {what} in {' or '.join(candidates)}; its columns: {has}. Name one with {what}_column=")
    return Columns(problem=named["problem"], gold=named["gold"], options=[name for name in columns.options if _has(row, name)][:1])


def _has(row: Mapping[str, Any], name: str) -> bool:
    return _value(row, name) is not None


def _value(row: Any, name: str) -> Any:
    if isinstance(row, Mapping) and name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    return _value(row[outer], inner) if inner and isinstance(row, Mapping) and outer in row else None


def _problem(where: str, row: Mapping[str, Any], name: str) -> str:
    value = _value(row, name)
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):  # messages, the user's last
        value = value[-1].get("content") if value[-1].get("role") == "user" else None
    if not isinstance(value, str) or not value.strip():
        has = ", ".join(row) or "none"
        raise ConfigError(f"{where}: the problem in {name} must be text, or messages that end with the user's; got {value!r:.80} ({has})")
    return value


def _gold(where: str, value: Any, options: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise ConfigError(f"{where}: a gold is text or a number, got {value!r:.80}")
    if isinstance(value, int) and isinstance(options, list) and 0 <= value < len(options):  # an index
        return chr(ord("A") + value)
    return str(value)


def _options(value: Any) -> dict[str, str] | list[str] | None:
    """Texts in order, or by label; also as two columns, `text` and `label`."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        return {str(label): str(text) for label, text in zip(value["label"], value["text"], strict=False)}
    if isinstance(value, Mapping):
        return {str(label): str(text) for label, text in value.items()}
    return [str(text) for text in value] if isinstance(value, list) and value else None
