"""Environments of other libraries under our interface, by specs of the form `adapter:NAME?argument=value` (see `agentrl.registry`).

A module here imports the library that it adapts when its factory is called, through `import_extra`, so that nobody who does without the
library pays for it or misses it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a library that an extra of agentrl installs. Raises `ConfigError` with the command where it is missing or broken."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{module} is installed, but lacks {error.name!r}: pip install {error.name}") from error
        raise ConfigError(f'{error.name} is not installed in this Python; install it with: pip install "agentrl[{extra}]"') from error
    except (Exception, SystemExit) as error:  # the boundary to the library
        raise ConfigError(f"{module} is installed and does not import: {type(error).__name__}: {error}") from error
