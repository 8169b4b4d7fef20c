"""Which evaluation was the best so far, and when to stop because none has been better for a while.

Pure: an evaluation goes in, a new value comes out. The value is kept in checkpoints as it is, so that a resumed run chooses as one that was
not interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "eval_"
"""What the name of an evaluation's figure begins with."""
LOWER_IS_BETTER = ("loss", "nll", "perplexity", "kl", "divergence", "log_odds_rejected", "logps/rejected", "rewards/rejected")
HIGHER_IS_BETTER = ("accuracy", "accuracies", "reward", "margin", "margins", "log_odds_ratio", "log_odds_chosen", "chosen")
"""Ends of names that say which way is better; any other metric takes `higher_is_better`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How evaluations are compared, and what was found so far."""

    metric: str
    """The figure that is compared, such as `eval_loss`."""
    higher_is_better: bool
    patience: int | None = None
    """Evaluations in a row without a better figure after which the run stops; None never stops it."""
    best: float | None = None
    """The best figure so far; None before the first finite one."""
    best_step: int | None = None
    """Optimizer steps done when it was measured."""
    judged_step: int | None = None
    """Optimizer steps done at the last evaluation."""
    without_gain: int = 0
    """Evaluations since the best one."""

    def judged(self, step: int, figures: Mapping[str, float]) -> Selection:
        """Take in an evaluation; a second one of the same step replaces nothing and counts for nothing.

        A figure that is not finite is never the best. Raises `ConfigError` where the evaluation has no such figure.
        """
        if step == self.judged_step:
            return self
        value = figures.get(self.metric)
        if value is None or not self.metric.startswith(PREFIX):  # a figure of training rows is not one of an evaluation
            raise ConfigError(_unknown(self.metric, figures))
        if self._beats(value):
            return replace(self, best=value, best_step=step, judged_step=step, without_gain=0)
        return replace(self, judged_step=step, without_gain=self.without_gain + 1)

    def _beats(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.best is None or (value > self.best if self.higher_is_better else value < self.best)

    @property
    def improved(self) -> bool:
        """Whether the last evaluation is the best one."""
        return self.best_step is not None and self.best_step == self.judged_step

    @property
    def exhausted(self) -> bool:
        """Whether the run should stop: the last `patience` evaluations were no better than one before them."""
        return self.patience is not None and self.without_gain >= self.patience

    @property
    def said(self) -> str:
        """The outcome in words: `best eval_loss 1.23 at step 300`."""
        if self.best is None:
            return f"no evaluation has given a finite {self.metric}"
        return f"best {self.metric} {self.best:.4g} at step {self.best_step}"


def selection(metric: str, higher_is_better: bool | None, patience: int | None) -> Selection:
    """A selection before its first evaluation; raises `ConfigError` where the metric's name does not say which way is better."""
    higher = higher_is_better if higher_is_better is not None else _direction(metric)
    if higher is None:
        raise ConfigError(
            f"evaluation.metric {metric!r}: its name does not say which way is better: set evaluation.higher_is_better to true or false"
        )
    return Selection(metric=metric, higher_is_better=higher, patience=patience)


def resumed(fresh: Selection, kept: Selection | None) -> Selection:
    """A checkpoint's findings under the run file's present rules; nothing of them where another figure is compared now."""
    if kept is None or (kept.metric, kept.higher_is_better) != (fresh.metric, fresh.higher_is_better):
        return fresh
    return replace(kept, patience=fresh.patience)


def _direction(metric: str) -> bool | None:
    name = metric.removeprefix(PREFIX)
    if any(name == end or name.endswith((f"/{end}", f"_{end}")) for end in LOWER_IS_BETTER):
        return False
    if any(name == end or name.endswith((f"/{end}", f"_{end}")) for end in HIGHER_IS_BETTER):
        return True
    return None


def _unknown(metric: str, figures: Mapping[str, float]) -> str:
    known = sorted(name for name in figures if name.startswith(PREFIX) and "/time/" not in name and not name.startswith(f"{PREFIX}time"))
    near = f"{PREFIX}{metric}" if f"{PREFIX}{metric}" in known else next(iter(get_close_matches(metric, known, n=1)), "")
    meant = f"; did you mean {near}?" if near else ""
    return f"evaluation.metric is {metric!r}, and an evaluation of this run gives {', '.join(known) or 'no figures'}{meant}"
