"""Which files of a folder hold which split."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentrl.data.specs import ROLES
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Of files that rows are read from; all but Parquet may be compressed, `.jsonl.gz`."""
_NOT_DATA = {"dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json"}
_SPLITS = (*ROLES["train"], *ROLES["eval"])
_AT_START = re.compile(rf"({'|'.join(map(re.escape, _SPLITS))})(?=$|[-_.])", re.IGNORECASE)


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`."""
    return path.with_suffix("").suffix.lower() if is_packed(path) else path.suffix.lower()


def is_packed(path: Path) -> bool:
    """Whether a file's name says that it is compressed, `.gz`."""
    return path.suffix.lower() == ".gz"


def is_saved(path: Path) -> bool:
    """Whether `datasets` saved a dataset in this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def splits_of(path: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder, those of a split in the order of their names.

    A file belongs to the split that its name begins with (`train.jsonl`, `test-00000-of-00002.parquet`), or that its folder is called; a
    folder in which no name says so is all `train`. A subfolder `data` is looked into. Raises `ConfigError` where there are no such files.
    """
    files = [file for folder in (path, path / "data") if folder.is_dir() for file in _files(folder)]
    named: dict[str, list[Path]] = {}
    for file in files:
        found = _AT_START.match(file.name)
        if found:
            named.setdefault(found[1].lower(), []).append(file)
    for folder in (path, path / "data"):
        for inner in sorted(folder.iterdir()) if folder.is_dir() else []:
            if inner.is_dir() and inner.name.lower() in _SPLITS and inner.name.lower() not in named and _files(inner):
                named[inner.name.lower()] = _files(inner)
    if not named and not files:
        raise ConfigError(f"the folder {path} holds no dataset: files ending in {', '.join(SUFFIXES)}, or what `datasets` saved, are read")
    return named or {"train": files}


def _files(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir())
    return [
        file for file in inside if file.is_file() and suffix_of(file) in SUFFIXES and file.name not in _NOT_DATA and file.name[0] != "."
    ]
