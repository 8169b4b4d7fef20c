"""The learner: from groups of rollouts to one optimizer step, on one rank or many."""

from __future__ import annotations

from agentrl.learner.learner import Learner
from agentrl.learner.ranks import broadcast_groups

__all__ = ["Learner", "broadcast_groups"]
