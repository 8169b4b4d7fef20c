"""A run's folder: what is where, who may write it, and how it is cut back to a checkpoint.

- config.yaml: all values resolved
- metrics.jsonl: one object a step
- rollouts/: every episode (agentrl.rollout_log)
- checkpoints/step-N/: learner state and run.json, complete or absent
- model/: the final model
- logs/: one file a child process
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agentrl.errors import CheckpointError, ConfigError
from agentrl.records import SCHEMA_VERSION
from agentrl.rollout_log import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """`run.json` of a checkpoint: where the run stood, beside what the learner keeps."""

    step: int
    lineage: int
    places_trained: int
    next_index: int
    schema_version: int = SCHEMA_VERSION


class RunFolder:
    """Opens (and locks) a run folder; one process a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.logs = path / "logs"
        self.config_file = path / "config.yaml"
        self._lock: int | None = None

    def create(self, config_text: str) -> None:
        """Start a new run here. Raises `ConfigError` where one already is."""
        if self.config_file.exists():
            raise ConfigError(
                f"{self.path} already holds a run; give another --output, or go on with it: agentrl train --resume {self.path}"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            replace_file(self.config_file, config_text.encode())
        except OSError as error:
            raise ConfigError(f"cannot make the run folder {self.path}: {error}; give another --output") from error

    def reopen(self) -> None:
        """Go on with a run. Raises `ConfigError` where there is none, or where another process has it."""
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml; give the folder that `agentrl train` printed")
        self._acquire()

    def _acquire(self) -> None:
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is using the run folder {self.path}; wait for it or give another --output") from None

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Append one step."""
        try:
            with self.metrics_file.open("ab") as file:
                file.write(json.dumps(metrics).encode() + b"\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.metrics_file}: {error}") from error

    def cut_metrics(self, step: int) -> None:
        """Forget the steps past `step`, and a line torn by a crash."""
        kept = [line for line in _lines(self.metrics_file) if json.loads(line)["step"] <= step]
        replace_file(self.metrics_file, b"".join(kept))

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = [path for path in self.checkpoints.glob("step-*") if (path / "run.json").exists()]
        return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)

    def read_state(self, checkpoint: Path) -> RunState:
        """`run.json` of a checkpoint."""
        try:
            return msgspec.json.decode((checkpoint / "run.json").read_bytes(), type=RunState)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{checkpoint / 'run.json'} cannot be read back: {error}") from error

    @contextlib.contextmanager
    def writing_checkpoint(self, state: RunState) -> Iterator[Path]:
        """A folder to fill; it becomes `checkpoints/step-N` whole, or disappears.

        Raises `CheckpointError` when the disk does not take it; earlier checkpoints are unharmed.
        """
        final = self.checkpoints / f"step-{state.step:06d}"
        draft = self.checkpoints / f".draft-{final.name}"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            yield draft
            (draft / "run.json").write_bytes(msgspec.json.encode(state))
            for path in draft.rglob("*"):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            _sync(self.checkpoints)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint of step {state.step} to {final}: {error}; "
                f"free some space and run `agentrl train --resume {self.path}`: it goes on from "
                f"{self.latest_checkpoint() or 'the start'}, and finished rollouts are not lost"
            ) from error

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the newest `keep`."""
        complete = sorted(self.checkpoints.glob("step-*"))
        for path in complete[:-keep]:
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All steps of a run folder, oldest first."""
    return [json.loads(line) for line in _lines(folder / "metrics.jsonl")]
