"""Objectives: pure losses behind one open registry. Importing this package, or validating options, loads no torch."""

from __future__ import annotations

from agentrl.objectives.base import Objective, ObjectiveConfig
from agentrl.objectives.losses import Losses, Normalization, TokenBatch
from agentrl.objectives.needs import Critic, DensityRatio, Needs
from agentrl.objectives.registry import get, register, registered, validate
from agentrl.objectives.signals import Credit, GroupSignals, MemberSignals, StepColumns

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
