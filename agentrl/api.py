"""`agentrl.train(...)`: the command line's `train` from Python, with objects in place of specs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl import runfile
from agentrl.config import RunConfig
from agentrl.environment import Environment
from agentrl.errors import ConfigError
from agentrl.run import RunResult, default_output
from agentrl.run import train as run_train

if TYPE_CHECKING:
    from agentrl.progress import Progress

EnvironmentLike = str | type[Environment] | Callable[..., Environment]


def train(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    env: EnvironmentLike | None = None,
    rewards: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    dataset: str | Path | Iterable[Mapping[str, Any]] | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Train as `agentrl train` does.

    Args:
        config: a `RunConfig`, a mapping with a run file's keys, or the path of a run file.
        env: a spec, an environment class, or a function that returns an environment.
        rewards: reward functions `f(prompts, completions, completion_ids, **columns)`, for `dataset`.
        dataset: rows with a `prompt` and the columns that the rewards read, or the path of a JSON-lines file.
        resume: a run folder to go on with.
        progress: where to show the run; by default the terminal, or plain lines where there is none.

    Raises `ConfigError` for objects that other processes cannot import (a lambda, a notebook cell), with the cure.
    """
    from agentrl.progress import default_progress

    changes: dict[str, Any] = {}
    if env is not None:
        changes["env"] = env if isinstance(env, str) else import_path(env)
    if rewards is not None:
        functions = [rewards] if callable(rewards) else list(rewards)
        changes["rewards"] = [import_path(function) for function in functions]
    resolved = _resolve(config, changes, dataset)
    with progress or default_progress(resolved.steps) as shown:
        return run_train(resolved, resume=Path(resume) if resume else None, progress=shown)


def _resolve(config: RunConfig | Mapping[str, Any] | str | Path, changes: dict[str, Any], dataset: Any) -> RunConfig:
    if isinstance(config, str | Path):
        config = runfile.load(Path(config))
    values = config.model_dump(mode="json", exclude_unset=True) if isinstance(config, RunConfig) else dict(config)
    values |= changes
    if isinstance(dataset, str | Path):
        values["dataset"] = str(dataset)
    elif dataset is not None:
        values["dataset"] = "dataset.jsonl"
    resolved = runfile.from_mapping(values)
    if dataset is None or isinstance(dataset, str | Path):
        return resolved
    output = Path(resolved.output or default_output(resolved))
    path = _write_rows(output / "data" / "dataset.jsonl", dataset)
    return resolved.model_copy(update={"output": str(output), "dataset": str(path.resolve())})


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Put the rows where every process, and a later resume, can read them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            try:
                file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            except (TypeError, ValueError) as error:
                raise ConfigError(f"dataset row {number} is not a JSON object: {error}") from error
    return path


def import_path(target: Callable[..., Any]) -> str:
    """The spec under which other processes import a class or function again.

    Raises `ConfigError` where they cannot: each process of a run imports what it needs by name.
    """
    name = getattr(target, "__qualname__", type(target).__name__)
    module = getattr(target, "__module__", None) or "?"
    cure = "define it at the top level of a .py file and pass it from there, or give its spec 'file.py:Name'"
    if not name.isidentifier():
        raise ConfigError(f"{module}.{name} cannot be imported by the run's other processes; {cure}")
    if module != "__main__":
        return f"{module}:{name}"
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise ConfigError(f"{name} lives in an interactive interpreter, which the run's other processes cannot import; {cure}")
    return f"{Path(file).resolve()}:{name}"
