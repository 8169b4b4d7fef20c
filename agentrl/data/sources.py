"""Rows from where a run file says: files, folders, `datasets`, the Hub, or Python objects.

    train.jsonl  rows.json  pairs.csv  pairs.tsv  train.parquet     one object a line or row; all but Parquet also compressed, `.gz`
    folder/                                                         such files as splits, or a dataset that `datasets` saved
    org/dataset?split=train[:1000]&name=config                      on the Hub, where no file or folder has this name
    rollouts:runs/first?min_reward=1                                what an earlier run sampled (`rollout_rows`)

JSON is read object by object, so that no two rows' keys are merged; of Arrow's tables see `arrow_rows`. Rows are read when they are asked
for: where a file holds more than fits in memory, give JSON lines, or stream (`streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.data.arrow_rows import ArrowRows, first_line, read_parquet
from agentrl.data.csv_rows import CsvRows
from agentrl.data.folders import SUFFIXES, is_packed, is_saved, splits_of, suffix_of
from agentrl.data.json_rows import JsonLines, read_json
from agentrl.data.rollout_rows import is_run, open_rollouts
from agentrl.data.rows import JoinedRows, ObjectRows, Rows, SelectedRows
from agentrl.data.specs import DatasetSpec, SplitPart, choose_split
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from typing import Literal

Source = str | Path | Iterable[Mapping[str, Any]]
"""What a dataset may be given as: a spec, a `datasets.Dataset`, or rows."""
Load = Callable[..., Any]
"""`datasets.load_dataset`, or what stands in for it: `load(path, name=..., split=..., revision=..., streaming=...)`."""


def open_rows(source: Source, *, split: Literal["train", "eval"] = "train", load: Load | None = None) -> Rows:
    """The rows of a dataset.

    Args:
        source: a spec such as `data/train.jsonl` or `folder?split=test`, or the rows themselves.
        split: what they are for, which chooses among splits where the spec names none.
        load: stands in for `datasets.load_dataset`.

    Raises `ConfigError` for what is not there, cannot be read or holds no rows.
    """
    if isinstance(source, str) and is_run(source):
        return open_rollouts(source)
    if isinstance(source, str | Path):
        spec = DatasetSpec.parse(str(source))
        rows = _of_spec(spec, split, load)
        name = spec.text
    else:
        rows = ArrowRows(source, "the dataset") if hasattr(source, "column_names") and hasattr(source, "features") else _of_objects(source)
        name = "the dataset"
    if not len(rows):
        raise ConfigError(f"{name} holds no rows")
    return rows


def read_file(path: Path) -> Rows:
    """The rows of one file. Raises `ConfigError` for one that is not there, of no known kind, or that cannot be read."""
    suffix = suffix_of(path)
    if not path.is_file():
        raise ConfigError(f"there is no dataset {path}: no such file")
    if suffix in {".jsonl", ".ndjson"}:
        return JsonLines(path)
    if suffix == ".json":
        return read_json(path)
    if suffix in {".csv", ".tsv"}:
        return CsvRows(path)
    if suffix == ".parquet" and not is_packed(path):
        return read_parquet(path)
    raise ConfigError(f"the dataset {path} is of no known kind: {unknown_kind(path)}")


def unknown_kind(path: Path) -> str:
    """Why rows are not read from a file of this name."""
    named = f"its name ends in {path.suffix!r}" if path.suffix else "its name has no ending"
    return f"{named}, and rows are read from {', '.join(SUFFIXES)} (and .gz of all but Parquet)"


def hub_name(spec: DatasetSpec) -> str:
    """The path of a spec as a name on the Hub. Raises `ConfigError` where it can only be a file or folder, which is not there."""
    parts = spec.path.split("/")
    looks_local = len(parts) > 2 or not all(parts) or parts[0].startswith((".", "~")) or (len(parts) == 2 and Path(parts[0]).is_dir())
    if looks_local or suffix_of(Path(spec.path)) in SUFFIXES:
        nearest = next((parent for parent in Path(spec.path).parents if parent.is_dir()), Path())
        raise ConfigError(f"there is no dataset {spec.path}: no such file or folder (the folder {nearest.resolve()} is there)")
    return spec.path


def load_from_hub(spec: DatasetSpec, load: Load | None, **arguments: Any) -> Any:
    """What `datasets.load_dataset` gives. Raises `ConfigError` with what it says where it gives nothing."""
    name = hub_name(spec)
    if load is None:
        from datasets import load_dataset  # type: ignore[import-untyped]

        load = load_dataset
    try:
        return load(name, name=spec.name, revision=spec.revision, **arguments)
    except Exception as error:  # somebody else's code, a network and a builder script behind it
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"dataset {spec.text!r} is no file or folder here, and could not be loaded from the Hub: {said}") from error


def _of_objects(source: Iterable[Mapping[str, Any]]) -> Rows:
    if isinstance(source, Mapping):
        raise ConfigError("a dataset of Python objects is a list of rows, each a dict; got one dict")
    return ObjectRows(list(source))


def _of_spec(spec: DatasetSpec, role: str, load: Load | None) -> Rows:
    path = Path(spec.path).expanduser()
    local = path.exists()
    if local and (spec.name or spec.revision):
        raise ConfigError(f"dataset {spec.text!r} is here, and only datasets on the Hub have a `name` or a `revision`")
    if path.is_file():
        return _parts(spec, lambda part: _whole_file(spec, part, path))
    if is_saved(path):
        return _saved(spec, role, path)
    if local and not path.is_dir():
        raise ConfigError(f"dataset {spec.text!r} is a pipe or a device, which has no lines to go back to: write it to a file first")
    if local:
        splits = splits_of(path)
        opened: dict[str, Rows] = {}

        def of_split(part: SplitPart) -> Rows:
            name = choose_split(part, role, list(splits), spec)
            return opened.setdefault(name, JoinedRows([read_file(file) for file in splits[name]]))

        return _parts(spec, of_split)
    loaded = load_from_hub(spec, load, streaming=False)
    return _parts(spec, lambda part: ArrowRows(_one_split(loaded, part, role, spec), spec.path))


def _parts(spec: DatasetSpec, opened: Callable[[SplitPart], Rows]) -> Rows:
    """The stretches that a spec asks for, behind each other."""
    found = []
    for part in spec.split:
        rows = opened(part)
        found.append(rows if part.whole else SelectedRows(rows, part.window(len(rows))))
    return found[0] if len(found) == 1 else JoinedRows(found)


def _whole_file(spec: DatasetSpec, part: SplitPart, path: Path) -> Rows:
    if part.name not in {"", "train"}:
        raise ConfigError(f"dataset {spec.text!r} is one file, which has no split {part.name!r}: name the file that has it")
    return read_file(path)


def _saved(spec: DatasetSpec, role: str, path: Path) -> Rows:
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # somebody else's code, on files that may be damaged
        raise ConfigError(f"cannot read the dataset that `datasets` saved in {path}: {first_line(error)}") from error
    return _parts(spec, lambda part: ArrowRows(_one_split(loaded, part, role, spec), str(path)))


def _one_split(loaded: Any, part: SplitPart, role: str, spec: DatasetSpec) -> Any:
    """A split of a `DatasetDict`; a single dataset is its own and only one."""
    if not isinstance(loaded, Mapping):
        if part.name not in {"", "train"}:
            raise ConfigError(f"dataset {spec.text!r} has no splits, and {part.name!r} is asked for: leave it out")
        return loaded
    return loaded[choose_split(part, role, list(loaded), spec)]
