"""Every finished episode on disk, and what became of it: the part of a run that a crash must not lose.

`rollouts/groups-<lineage>.jsonl` holds one `Group` a line, written when the group finishes and before anything trains on it.
`rollouts/dispositions.jsonl` holds one `Disposed` a line. A resume starts a new lineage and a new file, so a line torn by a crash is
never written behind; it is skipped when read. Lines reach the kernel at once (a killed process loses none) and the disk at each
checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agentrl import wire
from agentrl.errors import CheckpointError
from agentrl.records import SCHEMA_VERSION, Disposition, Group

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disposed:
    """What became of the rollouts of one group; exactly one such line a group in the surviving lineage."""

    index: int
    """The group's place in dispatch order."""
    members: tuple[Disposition, ...]
    """One a rollout; one in all where the group was never played to its end."""
    step: int | None = None
    """The optimizer step (from 1) that consumed it; None for a group that no step consumed."""
    lineage: int = 0
    at_end: bool = False
    """Left over when the run had done its steps; a resume with more steps takes it up again."""
    schema_version: int = SCHEMA_VERSION


class _GroupHead(msgspec.Struct):
    """Enough of a group's line to know whether the rest has to be decoded."""

    index: int


class RolloutLog:
    """Appends groups and dispositions; owned by one thread at a time."""

    def __init__(self, folder: Path, lineage: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lineage = lineage
        self._groups = _open_append(folder / f"groups-{lineage:03d}.jsonl")
        self._dispositions = _open_append(folder / "dispositions.jsonl")

    def write(self, group: Group) -> None:
        """Make a finished group durable. Raises `CheckpointError` when the disk does not take it."""
        append_group(self._groups, group)

    def dispose(self, index: int, members: tuple[Disposition, ...], *, step: int | None = None, at_end: bool = False) -> None:
        """Note what became of a group."""
        record = Disposed(index=index, members=members, step=step, lineage=self._lineage, at_end=at_end)
        _write_whole(self._dispositions, wire.to_json_line(record))

    def sync(self) -> None:
        """Force all lines to the disk."""
        os.fsync(self._groups)
        os.fsync(self._dispositions)

    def close(self) -> None:
        """Close the files."""
        os.close(self._groups)
        os.close(self._dispositions)


def append_group(descriptor: int, group: Group) -> None:
    """Append a group to an open file. Raises `CheckpointError` when the disk does not take it; the file then ends as it did before."""
    _write_whole(descriptor, wire.to_json_line(group))


def next_lineage(folder: Path) -> int:
    """Number of a lineage that has no file yet."""
    return max((int(path.stem.removeprefix("groups-")) for path in folder.glob("groups-*.jsonl")), default=-1) + 1


def has_dispositions(folder: Path) -> bool:
    """Whether the file is there."""
    return (folder / "dispositions.jsonl").exists()


def read_dispositions(folder: Path) -> list[Disposed]:
    """All whole lines of `dispositions.jsonl`."""
    return [_decoded(line, Disposed, place) for line, place in _whole_lines(folder / "dispositions.jsonl")]


def cut_dispositions(folder: Path, step: int) -> dict[int, Disposed]:
    """Forget what steps past `step` consumed and what an end of the run left over; returns the dispositions that stay, by group."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {record.index: record for record in read_dispositions(folder) if not record.at_end and (record.step or 0) <= step}
    replace_file(folder / "dispositions.jsonl", b"".join(wire.to_json_line(record) for record in kept.values()))
    return kept


def read_groups(folder: Path, *, skip: Collection[int] = (), only: Collection[int] | None = None) -> Iterator[Group]:
    """Finished groups of all lineages in the order of their files.

    Args:
        folder: `rollouts/` of a run.
        skip: indices that need not be decoded.
        only: indices that are wanted; None for all.
    """
    seen = set(skip)
    for path in sorted(folder.glob("groups-*.jsonl")):
        for line, place in _whole_lines(path):
            head = _decoded(line, _GroupHead, place)
            if head.index not in seen and (only is None or head.index in only):
                seen.add(head.index)
                yield _decoded(line, Group, place)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}; what was there before is unharmed") from error


def _whole_lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Every line that was written to its end, and where it is, for messages."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield line, f"{path}, line {number}"


def _decoded(line: bytes, kind: type[T], place: str) -> T:
    try:
        return wire.from_json(line, kind)
    except (msgspec.DecodeError, ValueError) as error:  # ValueError from a record's own checks
        raise CheckpointError(f"{place} does not read back: {error}; the file was changed or damaged after it was written") from error


def _open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _write_whole(descriptor: int, line: bytes) -> None:
    view = memoryview(line)
    start = os.fstat(descriptor).st_size
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        with contextlib.suppress(OSError):  # a device cannot be truncated
            os.ftruncate(descriptor, start)
        raise CheckpointError(f"cannot write a finished rollout to disk: {error}; free some space, then resume the run") from error
