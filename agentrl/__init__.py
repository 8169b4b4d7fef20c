"""Asynchronous reinforcement learning of language models from environments.

`agentrl.train(config)` is the command line's `train`. To write an environment, subclass `Environment` (methods are tools) or return a
`SingleTurn` (a dataset and reward functions), and `register` it under a name.

Names load on first use: importing agentrl takes neither torch nor a noticeable time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.api import train
    from agentrl.config import RunConfig
    from agentrl.environment import Environment, Episode, Message, SingleTurn
    from agentrl.errors import AgentRLError, ConfigError
    from agentrl.evaluation import EvalResult, evaluate
    from agentrl.records import Rollout, Score, Task
    from agentrl.registry import register
    from agentrl.run import RunResult

__all__ = [
    "AgentRLError",
    "ConfigError",
    "Environment",
    "Episode",
    "EvalResult",
    "Message",
    "Rollout",
    "RunConfig",
    "RunResult",
    "Score",
    "SingleTurn",
    "Task",
    "evaluate",
    "register",
    "train",
]

_HOMES = {
    "AgentRLError": "agentrl.errors",
    "ConfigError": "agentrl.errors",
    "Environment": "agentrl.environment",
    "Episode": "agentrl.environment",
    "EvalResult": "agentrl.evaluation",
    "Message": "agentrl.environment",
    "Rollout": "agentrl.records",
    "RunConfig": "agentrl.config",
    "RunResult": "agentrl.run",
    "Score": "agentrl.records",
    "SingleTurn": "agentrl.environment",
    "Task": "agentrl.records",
    "evaluate": "agentrl.evaluation",
    "register": "agentrl.registry",
    "train": "agentrl.api",
}
"""Name -> module that defines it; no submodule may be called like a name here, for importing it would replace the name."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
