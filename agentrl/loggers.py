"""Metrics for tensorboard, wandb and trackio, beside metrics.jsonl, which stays the truth: one that fails is left out, and the run goes on.

Projects and servers are told to them as their own documentation says, by environment variables such as WANDB_PROJECT and WANDB_MODE.
"""

from __future__ import annotations

import importlib
import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agentrl.config import RunConfig

PROJECT = "agentrl"
"""Where the environment names none."""


class Logger(Protocol):
    """One of them."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Take the figures of a step, or of an evaluation after it."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, module: Any, config: RunConfig, folder: Path, step: int) -> None:
        self._writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write a scalar each."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Tracked:
    """A run of wandb or trackio, which share their functions; a resumed run goes on with it."""

    def __init__(self, module: Any, config: RunConfig, folder: Path, step: int) -> None:
        self._module = module
        name = module.__name__
        own = {"dir": str(folder / "logs"), "id": _safe(folder.resolve().name)} if name == "wandb" else {}
        project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
        values = config.model_dump(mode="json")
        module.init(project=project, name=folder.resolve().name, config=values, resume="allow", **own)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send them."""
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        """End its run."""
        self._module.finish()


def _safe(name: str) -> str:
    """A name without what an id may not hold."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)[-64:]


KINDS: Mapping[str, tuple[str, Callable[[Any, RunConfig, Path, int], Logger]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", Tracked),
    "trackio": ("trackio", Tracked),
}
"""Name in the run file -> module, and what is made of it."""


class Loggers:
    """All that a run file names. Use as a run folder's `on_logged`.

    Args:
        config: names them.
        folder: the run's.
        step: optimizer steps done before, where a run goes on.
        say: tells the user.
        load: imports a module.

    Raises `ConfigError` where one is not installed.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        step: int,
        say: Callable[[str], None],
        load: Callable[[str], Any] = importlib.import_module,
    ) -> None:
        self._say = say
        self._loggers: dict[str, Logger] = {}
        modules = {name: _loaded(name, load) for name in config.loggers}  # all of them before the first one begins a run
        for name, module in modules.items():
            self._guarded(name, partial(self._begin, name, module, config, folder, step))

    def _begin(self, name: str, module: Any, config: RunConfig, folder: Path, step: int) -> None:
        self._loggers[name] = KINDS[name][1](module, config, folder, step)

    def log(self, figures: Mapping[str, float]) -> None:
        """Give them the figures of a step or an evaluation; what is not finite is left to metrics.jsonl."""
        step = int(figures["step"])
        finite = {name: value for name, value in figures.items() if name != "step" and math.isfinite(value)}
        for name, logger in list(self._loggers.items()):
            self._guarded(name, partial(logger.log, finite, step))

    def close(self) -> None:
        """End them all."""
        for name, logger in list(self._loggers.items()):
            self._guarded(name, logger.close)
        self._loggers.clear()

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # somebody else's code, network and login: a run is worth more than its second copy
            self._loggers.pop(name, None)
            said = " ".join(str(error).split())[:300]
            self._say(f"{name} failed and is left out from here on: {type(error).__name__}: {said}; metrics.jsonl has everything")


def _loaded(name: str, load: Callable[[str], Any]) -> Any:
    try:
        return load(KINDS[name][0])
    except ImportError as error:
        raise ConfigError(f'loggers names {name}, which is not installed ({error}): pip install "agentrl[{name}]", or remove it') from None
