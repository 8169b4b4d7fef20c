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
    from agentrl.environment import Environment, Episode, EpisodeFunction, FunctionTool, tool_limits
    from agentrl.errors import AgentRLError, ConfigError
    from agentrl.evaluation import EvalResult, evaluate
    from agentrl.llm import LLM, BudgetSpent, Message, Reply
    from agentrl.records import Rollout, Score, Task
    from agentrl.registry import register
    from agentrl.run_folder import RunResult
    from agentrl.single_turn import SingleTurn

__all__ = [
    "LLM",
    "AgentRLError",
    "BudgetSpent",
    "ConfigError",
    "Environment",
    "Episode",
    "EpisodeFunction",
    "EvalResult",
    "FunctionTool",
    "Message",
    "Reply",
    "Rollout",
    "RunConfig",
    "RunResult",
    "Score",
    "SingleTurn",
    "Task",
    "evaluate",
    "register",
    "tool_limits",
    "train",
]

_HOMES = {
    "LLM": "agentrl.llm",
    "AgentRLError": "agentrl.errors",
    "BudgetSpent": "agentrl.llm",
    "ConfigError": "agentrl.errors",
    "Environment": "agentrl.environment",
    "Episode": "agentrl.environment",
    "EpisodeFunction": "agentrl.environment",
    "EvalResult": "agentrl.evaluation",
    "FunctionTool": "agentrl.environment",
    "Message": "agentrl.llm",
    "Reply": "agentrl.llm",
    "Rollout": "agentrl.records",
    "RunConfig": "agentrl.config",
    "RunResult": "agentrl.run_folder",
    "Score": "agentrl.records",
    "SingleTurn": "agentrl.single_turn",
    "Task": "agentrl.records",
    "evaluate": "agentrl.evaluation",
    "register": "agentrl.registry",
    "tool_limits": "agentrl.environment",
    "train": "agentrl.api",
}
"""Name -> module that defines it; no submodule may be called like a name here, for importing it would replace the name."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
