"""`agentrl.train(...)`: the command line's `train` from Python, with objects in place of specs."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl import registry, runfile
from agentrl.config import RunConfig
from agentrl.environment import Environment
from agentrl.errors import ConfigError
from agentrl.rollout_log import replace_file
from agentrl.run import train as run_train
from agentrl.run_folder import RunFolder, RunResult, new_folder

if TYPE_CHECKING:
    from agentrl.progress import Progress

EnvironmentLike = str | type[Environment] | Callable[..., Environment]
RewardLike = str | Callable[..., Any]
MOST_ROWS = 1_000_000
"""An endless iterable of rows ends here."""


def train(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    env: EnvironmentLike | None = None,
    rewards: RewardLike | Sequence[RewardLike] | None = None,
    judge: RewardLike | None = None,
    dataset: str | Path | Iterable[Mapping[str, Any]] | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Train as `agentrl train` does. In a script, call it under `if __name__ == "__main__":`: each process of a run imports the script.

    Args:
        config: a `RunConfig`, a mapping with a run file's keys, or the path of a run file.
        env: a spec, an environment class, or a function that returns an environment.
        rewards: reward functions `f(prompts, completions, completion_ids, **columns)`, or their specs, for `dataset`.
        judge: a function `f(prompts, completions)` that compares two completions a prompt, or its spec, for `dataset` and objectives that
            learn from preferences; beside `rewards`, or without.
        dataset: rows with a `prompt` and the columns that the rewards read, or the path of a JSON-lines file.
        resume: a run folder to go on with.
        progress: where to show the run; by default the terminal, or plain lines where there is none.

    Raises `ConfigError` for objects that other processes cannot import (a lambda, a notebook cell), with the cure.
    """
    from agentrl.progress import default_progress

    registry.refuse_while_importing("agentrl.train")
    resolved = _resolve(config, specs(env=env, rewards=rewards, judge=judge), dataset, Path(resume) if resume else None)
    with progress or default_progress(resolved.num_steps) as shown:
        return run_train(resolved, resume=Path(resume) if resume else None, progress=shown)


def specs(*, env: Any = None, rewards: Any = None, judge: Any = None) -> dict[str, Any]:
    """The keys of a run file that these objects set. Raises `ConfigError` for those that other processes cannot import."""
    changes: dict[str, Any] = {}
    if env is not None:
        changes["env"] = env if isinstance(env, str) else import_path(env)
    if rewards is not None:
        changes["rewards"] = _reward_specs(rewards)
    if judge is not None:
        changes["judge"] = judge if isinstance(judge, str) else import_path(judge)
    return changes


def _reward_specs(rewards: Any) -> list[str]:
    several = [rewards] if callable(rewards) or isinstance(rewards, str) else rewards
    if not isinstance(several, Iterable):
        raise ConfigError(f"rewards={rewards!r:.80} is no reward function and no list of them")
    return [one if isinstance(one, str) else import_path(one) for one in several]


def _resolve(config: Any, changes: dict[str, Any], dataset: Any, resume: Path | None) -> RunConfig:
    if isinstance(config, str | Path):
        config = runfile.load(Path(config))
    if not isinstance(config, RunConfig | Mapping):
        raise ConfigError(f"config={config!r:.80} is no RunConfig, no mapping and no path of a run file")
    values = config.model_dump(mode="json", exclude_unset=True) if isinstance(config, RunConfig) else dict(config)
    values |= changes
    if resume is not None:
        values["output"] = str(resume)
    rows = None if dataset is None or isinstance(dataset, str | Path) else dataset
    if dataset is not None:
        values["dataset"] = "dataset.jsonl" if rows is not None else str(dataset)
    resolved = runfile.from_mapping(values)
    if rows is None:
        return resolved
    lines = _lines(rows)
    output = Path(resolved.output) if resolved.output else new_folder(resolved)
    path = output / "data" / "dataset.jsonl"
    if resume is None or not path.exists():
        _keep(path, lines)
    return resolved.model_copy(update={"output": str(output), "dataset": str(path.resolve())})


def _lines(rows: Any) -> bytes:
    """The rows as JSON lines. Raises `ConfigError` for what is no row."""
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping | bytes):
        raise ConfigError(f"dataset={rows!r:.80} is no path and no iterable of rows")
    lines = []
    for number, row in enumerate(itertools.islice(rows, MOST_ROWS)):
        try:
            if not isinstance(row, Mapping):
                raise TypeError(f"got {row!r:.80}")
            lines.append(json.dumps(dict(row), ensure_ascii=False).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ConfigError(f"dataset row {number} is not a JSON object: {error}") from error
    return b"".join(lines)


def _keep(path: Path, lines: bytes) -> None:
    """Put the rows where every process, and a later resume, can read them."""
    folder = RunFolder(path.parent.parent)
    if folder.has_begun():
        raise folder.taken()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot keep the dataset in {path.parent}: {error}; set another `output`") from error
    replace_file(path, lines)


def import_path(target: Any) -> str:
    """The spec under which other processes import a class or function again.

    Raises `ConfigError` where they cannot: each process of a run imports what it needs by name.
    """
    cure = "define it at the top level of a .py file and pass it from there, or give its spec 'file.py:Name'"
    name, module = getattr(target, "__qualname__", None), getattr(target, "__module__", None)
    if not callable(target) or name is None or module is None:
        what = "environment" if isinstance(target, Environment) else "object"
        raise ConfigError(
            f"{target!r:.80} is an {what} of type {type(target).__name__}, which the run's other processes cannot import; "
            f"give the function or class that makes it: {cure}"
        )
    if getattr(sys.modules.get(module), name, None) is not target:
        raise ConfigError(f"{module}.{name} cannot be imported by the run's other processes under that name; {cure}")
    if module != "__main__":
        return f"{module}:{name}"
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return f"{main.__spec__.name}:{name}"
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(f"{name} lives in an interactive interpreter, which the run's other processes cannot import; {cure}")
    return f"{Path(file).resolve()}:{name}"
