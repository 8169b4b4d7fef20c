"""Tasksets of `verifiers` 0.4 by name or file: their tasks as rows, and rows as their tasks again."""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from agentrl.environment import Split
from agentrl.envs.dataset import split_rows
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task

CURE = (
    "pip install 'verifiers==0.4.*'; where its pins clash with others, give it a Python of its own (make setup-adapters makes one), serve "
    "the environment from there with `agentrl serve-env verifiers:NAME`, and train on the URL"
)


@dataclass(frozen=True)
class Loaded:
    """A taskset and its rows."""

    name: str
    """Of the package, for `verifiers`' own loaders."""
    config: Mapping[str, Any]
    """Of the taskset; `eval_config` instead for the tasks of evaluation."""
    eval_config: Mapping[str, Any] | None
    num_tasks: int | None
    """Most tasks of each config."""

    @cached_property
    def taskset(self) -> Any:
        """The taskset to train on."""
        return made(self.name, self.config)

    @cached_property
    def eval_taskset(self) -> Any:
        """The one to evaluate on, the same where there is no config of its own."""
        return self.taskset if self.eval_config is None else made(self.name, self.eval_config)

    @cached_property
    def rows(self) -> Mapping[Split, Sequence[Mapping[str, Any]]]:
        """JSON of each task's data, by split. Raises `ConfigError` where there is no end of tasks, or none at all."""
        rows = self._rows_of(self.taskset)
        if self.eval_config is not None:
            return {"train": rows, "eval": self._rows_of(self.eval_taskset)}
        return {"train": split_rows(rows, "train"), "eval": split_rows(rows, "eval")}

    def task_of(self, task: Task) -> Any:
        """The verifiers task of a row. Raises `EnvironmentFailure` where the row is none of this taskset's."""
        split: Split = "eval" if task.row.get("split") == "eval" else "train"
        taskset = self.eval_taskset if split == "eval" else self.taskset
        kind = type(taskset).task_type()
        try:
            data = kind.data_type().model_validate(task.row["task"])
        except (KeyError, ValueError) as error:
            raise EnvironmentFailure(f"verifiers taskset {self.name}: task {task.id} is none of its own: {error}") from error
        return kind(data, taskset.config.task)

    def _rows_of(self, taskset: Any) -> list[dict[str, Any]]:
        if self.num_tasks is None and not taskset.bounded:
            raise ConfigError(f"verifiers taskset {self.name} has no end of tasks; say how many are wanted with num_tasks")
        split = {"split": "eval"} if self.eval_config is not None and taskset is self.eval_taskset else {}
        tasks = itertools.islice(taskset, self.num_tasks)
        rows = [{**split, "task": task.data.model_dump(mode="json", exclude_defaults=True)} for task in tasks]
        if not rows:
            raise ConfigError(f"verifiers taskset {self.name} has no tasks with the config {dict(taskset.config)}")
        return rows


def found(name: str) -> str:
    """The name by which verifiers itself loads a taskset: of an installed package, or of a file, which can be imported from now on.

    Raises `ConfigError` where `verifiers` is not installed, or too old or new.
    """
    try:
        import verifiers
        import verifiers.v1
    except ImportError as error:
        raise ConfigError(f"tasksets of verifiers need the package ({error}); {CURE}") from error
    if verifiers.__version__.split(".")[:2] != ["0", "4"]:
        raise ConfigError(f"verifiers {verifiers.__version__} is not known here; {CURE}")
    if not name.endswith(".py"):
        return name
    path = Path(name).resolve()
    if not path.is_file():
        raise ConfigError(f"verifiers:{name}: there is no file {path}")
    if path.stem != path.stem.lower() or not path.stem.isidentifier():
        raise ConfigError(f"verifiers:{name}: verifiers imports it by its name, which must be lower case and without dashes")
    _importable(path.parent)
    return path.stem


def _importable(folder: Path) -> None:
    """Let this process, and the tool servers that verifiers starts from it, import what lies in a folder."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    known = os.environ.get("PYTHONPATH", "")
    if str(folder) not in known.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (known, str(folder)) if part)


def made(name: str, config: Mapping[str, Any]) -> Any:
    """A taskset with its config. Raises `ConfigError` where there is none, or the config does not fit."""
    import verifiers.v1 as vf

    try:
        return vf.load_taskset(vf.taskset_config_type(name).model_validate({**config, "id": name}))
    except Exception as error:  # the boundary to the taskset's code
        raise ConfigError(f"verifiers taskset {name}: {type(error).__name__}: {error}") from error


def check_turns(loaded: Loaded) -> None:
    """Raise `ConfigError` for what a taskset wants and an episode of our own turns cannot give."""
    import verifiers.v1 as vf

    kind = type(loaded.taskset).task_type()
    wants = {
        "an Env of its own": vf.environment_class(loaded.name) is not vf.SingleAgentEnv,
        "a harness of its own": vf.default_harness_id(loaded.name) == loaded.name,
        "a container": bool(kind.NEEDS_CONTAINER),
    }
    refuse(loaded.name, [what for what, wanted in wants.items() if wanted])


def check_task(name: str, task: Any) -> None:
    """The same for one task."""
    from verifiers.v1.utils.decorators import discover_decorated

    runs = [hook.__name__ for kind in ("metric", "reward") for hook in task.hooks(kind) if _needs_runtime(hook)]
    wants = {
        f"the container image {task.data.image}": task.data.image is not None,
        "a user who speaks first": task.data.prompt is None,
        "skills": bool(task.data.skills),
        "to stop by @vf.stop": bool(task.hooks("stop")),
        "to change requests by @vf.intercept": bool(discover_decorated(task, "intercept")),
        f"a runtime for {', '.join(runs)}": bool(runs),
    }
    refuse(name, [what for what, wanted in wants.items() if wanted])


def _needs_runtime(hook: Any) -> bool:
    parameter = inspect.signature(hook).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def refuse(name: str, wants: Sequence[str]) -> None:
    """Raise `ConfigError` where there are wants that only verifiers itself can meet."""
    if wants:
        raise ConfigError(
            f"verifiers taskset {name} wants {', and '.join(wants)}: it cannot be played turn by turn here; let verifiers play the "
            "episodes itself, with mode=harness"
        )
