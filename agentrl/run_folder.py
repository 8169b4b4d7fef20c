"""A run's folder: what is where, who may write it, and how it is cut back to a checkpoint.

- config.yaml: all values resolved
- metrics.jsonl: one object a step
- warm_start.jsonl: one object a step of a warm start
- evaluations.jsonl: one object an evaluation of an offline run
- samples.jsonl: one object an answer to a held-out prompt of an offline run
- card.json: what the model's card says beside configuration and metrics
- rollouts/: every episode (agentrl.rollout_log)
- checkpoints/step-N/: learner state and run.json, complete or absent
- model/: the final model
- push/: weights on their way to the Hugging Face Hub
- reference/: log-probs of an offline run's rows under its reference
- logs/: one file a child process
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agentrl import objectives
from agentrl.curriculum import TaskState
from agentrl.errors import CheckpointError, ConfigError
from agentrl.records import SCHEMA_VERSION
from agentrl.rollout_log import replace_file
from agentrl.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agentrl.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEntry:
    """A group that may be trained again; the group itself is in the rollout log."""

    index: int
    """The group's place in dispatch order."""
    step: int
    """The optimizer step (from 1) that trained it first."""
    priority: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """`run.json` of a checkpoint: where the run stood, beside what the learner keeps."""

    step: int
    lineage: int
    places_trained: int
    next_index: int
    replay: tuple[ReplayEntry, ...] = ()
    tasks: tuple[TaskState, ...] = ()
    """What the curriculum knows of tasks."""
    selection: Selection | None = None
    """Which evaluation of an offline run was the best."""
    data: str = ""
    """Fingerprint of the rows that an offline run trains on."""
    stream: dict[str, Any] | None = None
    """Where its data goes on."""
    order: dict[str, Any] = field(default_factory=dict)
    """What chose the order of its rows, key by key."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended."""

    folder: Path
    steps: int
    interrupted: bool
    last: dict[str, float]
    """Metrics of the last step."""


class RunFolder:
    """Opens (and locks) a run folder; one process a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self.warm_start_file = path / "warm_start.jsonl"
        self.evaluations_file = path / "evaluations.jsonl"
        self.samples_file = path / "samples.jsonl"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.logs = path / "logs"
        self.reference = path / "reference"
        self.config_file = path / "config.yaml"
        self.on_logged: Callable[[Mapping[str, float]], None] | None = None
        """Given each step and evaluation after it is written."""
        self._lock: int | None = None

    def create(self, config_text: str) -> None:
        """Start a new run here, over one that ended before its first rollout or step. Raises `ConfigError` where any other is."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            if self.has_begun():
                raise self.taken()
            replace_file(self.config_file, config_text.encode())
        except (OSError, CheckpointError) as error:
            self.close()
            raise ConfigError(f"cannot make the run folder {self.path}: {error}; give another --output") from error
        except BaseException:
            self.close()
            raise

    def taken(self) -> ConfigError:
        """The error for a new run in an old folder."""
        return ConfigError(f"{self.path} already holds a run; give another --output, or go on with it: agentrl train --resume {self.path}")

    def has_begun(self) -> bool:
        """Whether there is something here that must not be written over."""
        logs = [*self.rollouts.glob("groups-*.jsonl"), self.metrics_file]  # steps without a checkpoint: new ones would be mixed with them
        return any(path.stat().st_size for path in logs if path.exists()) or bool(self._complete_checkpoints())

    def reopen(self) -> None:
        """Go on with a run. Raises `ConfigError` where there is none, or where another process has it."""
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml; give the folder that `agentrl train` printed")
        try:
            self._acquire()
        except OSError as error:
            raise ConfigError(f"cannot go on with the run in {self.path}: {error}; its folder must be writable") from error

    def keep_config(self, config_text: str) -> None:
        """Note the configuration in force: a resume may have changed it, and the next one starts from here."""
        if self.config_file.read_bytes() != config_text.encode():
            replace_file(self.config_file, config_text.encode())

    def _acquire(self) -> None:
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(f"another process is using the run folder {self.path}; wait for it or give another --output") from None

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Append one step."""
        self._append(self.metrics_file, metrics)
        if self.on_logged is not None:
            self.on_logged(metrics)

    def log_warm_step(self, metrics: dict[str, float]) -> None:
        """Append one step of a warm start; the first one forgets those of a warm start that did not come to its end."""
        self._append(self.warm_start_file, metrics, anew=metrics["step"] == 1)

    def log_evaluation(self, figures: dict[str, float]) -> None:
        """Append one evaluation."""
        self._append(self.evaluations_file, figures)
        if self.on_logged is not None:
            self.on_logged(figures)

    def log_sample(self, sample: dict[str, Any]) -> None:
        """Append one answer to a held-out prompt; it has the `step` that the weights are of."""
        self._append(self.samples_file, sample)

    def _append(self, path: Path, metrics: dict[str, Any], *, anew: bool = False) -> None:
        try:
            with path.open("wb" if anew else "ab") as file:
                file.write(json.dumps(metrics).encode() + b"\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}; free some space, then `agentrl train --resume {self.path}`") from error

    def cut_metrics(self, step: int) -> None:
        """Forget the steps past `step`, and a line torn by a crash."""
        for path in (self.metrics_file, self.evaluations_file, self.samples_file):
            if path == self.metrics_file or path.exists():
                replace_file(path, b"".join(line for line, metrics in _metrics_lines(path) if metrics["step"] <= step))

    def latest_checkpoint(self, *, before: Path | None = None) -> Path | None:
        """The newest complete checkpoint, or the newest but one where `before` is the newest."""
        complete = self._complete_checkpoints()
        if before is not None:
            complete = complete[: complete.index(before)]
        return next(reversed(complete), None)

    def _complete_checkpoints(self) -> list[Path]:
        """Oldest first."""
        complete = [path for path in self.checkpoints.glob("step-*") if (path / "run.json").exists()]
        return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))

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
        final = self.checkpoint_of(state.step)
        try:
            with _whole_folder(final) as draft:
                yield draft
                (draft / "run.json").write_bytes(msgspec.json.encode(state))
        except (OSError, RuntimeError, CheckpointError) as error:  # torch reports a full disk as RuntimeError
            raise CheckpointError(
                f"cannot write the checkpoint of step {state.step} to {final}: {error.__cause__ or error}; "
                f"free some space and run `agentrl train --resume {self.path}`: it goes on from "
                f"{self.latest_checkpoint() or 'the start'}{', and finished rollouts are not lost' if self.rollouts.exists() else ''}"
            ) from error

    @contextlib.contextmanager
    def writing_model(self) -> Iterator[Path]:
        """A folder to fill with the final model; it becomes `model/` whole, or disappears. Raises `CheckpointError` like a checkpoint."""
        try:
            with _whole_folder(self.model) as draft:
                yield draft
        except (OSError, RuntimeError, CheckpointError) as error:
            raise CheckpointError(
                f"cannot write the final model to {self.model}: {error.__cause__ or error}; free some space and run "
                f"`agentrl train --resume {self.path}`: it goes on from {self.latest_checkpoint()} and writes the model"
            ) from error

    @contextlib.contextmanager
    def writing_snapshot(self, final: Path) -> Iterator[Path]:
        """A folder to fill with weights that a frozen policy goes on with. Raises `CheckpointError` like a checkpoint."""
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with _whole_folder(final) as draft:
                yield draft
        except (OSError, RuntimeError, CheckpointError) as error:
            raise CheckpointError(
                f"cannot write the weights of a policy to {final}: {error.__cause__ or error}; free some space and run "
                f"`agentrl train --resume {self.path}`: it goes on from {self.latest_checkpoint() or 'the start'}"
            ) from error

    def push_folder(self, step: int) -> Path:
        """Where the weights of a step lie while they are pushed."""
        return self.path / "push" / f"step-{step:06d}"

    @contextlib.contextmanager
    def writing_push(self, step: int) -> Iterator[Path]:
        """A folder to fill with weights that are to be pushed. Raises `CheckpointError` like a checkpoint."""
        final = self.push_folder(step)
        try:
            with _whole_folder(final) as draft:
                yield draft
        except (OSError, RuntimeError, CheckpointError) as error:
            raise CheckpointError(
                f"cannot write the weights to push to {final}: {error.__cause__ or error}; free some space, or remove hub.every, and run "
                f"`agentrl train --resume {self.path}`: it goes on from {self.latest_checkpoint() or 'the start'}"
            ) from error

    def checkpoint_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return [int(path.name.removeprefix("step-")) for path in self._complete_checkpoints()]

    def prune_checkpoints(self, keep: int, *, spared: int | None = None) -> None:
        """Remove all but the newest `keep` and that of the step `spared`, and what is left of incomplete ones."""
        kept = [*self._complete_checkpoints()[-keep:], *([] if spared is None else [self.checkpoint_of(spared)])]
        for path in self.checkpoints.glob("step-*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def new_folder(config: RunConfig) -> Path:
    """Make `runs/<source>-<model>-<date>-<time>`, with a number where another run has taken that name in the same second.

    The source is the environment, or the dataset, in an offline run with the objective behind it.
    """
    first = f"runs/{_source(config)}-{Path(config.model).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    taken = 1
    while True:
        path = Path(first if taken == 1 else f"{first}-{taken}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            taken += 1
        except OSError as error:
            raise ConfigError(f"cannot make the run folder {path}: {error}; give --output") from error
        else:
            return path


def _source(config: RunConfig) -> str:
    """What a run learns from, as part of a file's name."""
    names = [config.env] if config.env else [one.env for one in config.envs]
    specs = [config.dataset] if config.dataset else [one.dataset for one in config.datasets]
    names += [Path(spec.partition("?")[0].rstrip("/")).stem for spec in specs]
    if objectives.get(config.objective["name"]).is_offline(objectives.validate(config.objective)):
        names.append(config.objective["name"])
    return "-".join(name.partition("?")[0] for name in names or ["run"]).replace("/", "_").replace(":", "-")[:120]


@contextlib.contextmanager
def _whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill beside `final`, which it replaces at the end; whatever stops that leaves `final` as it was."""
    draft = final.with_name(f".draft-{final.name}")
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in draft.rglob("*"):
            _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        draft.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _metrics_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every line that reads back, with what it says: a crash may tear the last one."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                metrics = json.loads(line)
                if line.endswith(b"\n") and isinstance(metrics, dict) and "step" in metrics:
                    yield line, metrics


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All steps of a run folder, oldest first."""
    return [metrics for _, metrics in _metrics_lines(folder / "metrics.jsonl")]


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """All evaluations of an offline run's folder, oldest first."""
    return [figures for _, figures in _metrics_lines(folder / "evaluations.jsonl")]
