"""Objectives: pure losses behind one open registry. Importing this package, or validating options, loads no torch."""

from __future__ import annotations

from agentrl.objectives.base import (
    Credit,
    Critic,
    DensityRatio,
    GroupSignals,
    Losses,
    MemberSignals,
    Needs,
    Normalization,
    Objective,
    ObjectiveConfig,
    StepColumns,
    TokenBatch,
)
from agentrl.objectives.registry import get, register, registered, validate

__all__ = [
    "Credit",
    "Critic",
    "DensityRatio",
    "GroupSignals",
    "Losses",
    "MemberSignals",
    "Needs",
    "Normalization",
    "Objective",
    "ObjectiveConfig",
    "StepColumns",
    "TokenBatch",
    "get",
    "register",
    "registered",
    "validate",
]
