"""Objectives: pure losses behind one open registry. Importing this package, or validating options, loads no torch."""

from __future__ import annotations

from agentrl.objectives.base import GroupSignals, Losses, Normalization, Objective, ObjectiveConfig, TokenBatch
from agentrl.objectives.registry import get, register, registered, validate

__all__ = [
    "GroupSignals",
    "Losses",
    "Normalization",
    "Objective",
    "ObjectiveConfig",
    "TokenBatch",
    "get",
    "register",
    "registered",
    "validate",
]
