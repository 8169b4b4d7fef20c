"""How the processor's cores are shared between engine and learner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.config import RunConfig


def cpu_share(config: RunConfig, side: str) -> int:
    """CPU threads of `engine` or `learner`: half the cores each, or all for both where they take turns (max_staleness 0)."""
    chosen = config.engine.threads if side == "engine" else config.learner.threads
    if chosen:
        return chosen
    cores = _cores()
    if config.max_staleness == 0:
        return cores
    engine = config.engine.threads or max(1, cores // 2)
    return engine if side == "engine" else max(1, cores - engine)


def spare_cores(config: RunConfig) -> int:
    """CPU threads that the learner may borrow from the engine while that has nothing to do; none where its own number was chosen."""
    if config.learner.threads or config.max_staleness == 0:
        return 0
    return max(0, _cores() - cpu_share(config, "learner"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
