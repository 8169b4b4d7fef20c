"""What is known of a run's steps, as a line and as a panel."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import RenderableType

BLOCKS = "".join(chr(0x2581 + height) for height in range(8))
"""Marks of a trend, low to high."""
ASCII_BLOCKS = "_.:-=+*#"
TREND_WIDTH = 40
"""Marks in a trend, each the mean of its share of the steps."""
MAX_TREND = 100_000
"""Rewards or losses kept for the trend."""
HEADLINES = {"reward/mean": "reward", "loss": "loss"}
"""What the panel draws, the first of these that a step tells."""
ACCURACIES = {"rewards/accuracies": "accuracy", "accuracy": "accuracy", "mean_token_accuracy": "token accuracy"}
"""What an offline step may say of how often the model is right, the most telling first."""


@dataclass(slots=True)
class State:
    """What was told so far, and what follows from it."""

    steps: int
    noun: str
    clock: Callable[[], float]
    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    headlines: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_TREND))
    wait: str = ""
    wait_since: float = 0.0
    first: tuple[int, float] | None = None
    """Steps done and time when this process began to count: a resumed run does not start at 0."""

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in a step."""
        self.metrics = dict(metrics)
        self.done = int(metrics.get("step", self.done + 1))
        self.steps = int(metrics.get("steps", self.steps))
        if self.first is None:
            self.first = (self.done - 1, self.clock() - metrics.get("time/step_s", 0.0))
        name = self.headline
        if name is not None and math.isfinite(metrics[name]):
            self.headlines.append(metrics[name])

    @property
    def headline(self) -> str | None:
        """The figure that is drawn."""
        return next((name for name in HEADLINES if name in self.metrics), None)

    @property
    def count(self) -> str:
        """Steps done, of how many where that is known."""
        return f"{self.noun} {self.done}/{self.steps}" if self.steps else f"{self.noun} {self.done}"

    def left_s(self) -> float | None:
        """Seconds to the last step at the pace so far; None before the first step."""
        if self.first is None:
            return None
        at, since = self.first
        return (self.clock() - since) / max(self.done - at, 1) * max(self.steps - self.done, 0)

    def waited_share(self) -> float | None:
        """Part of the last step in which the learner waited."""
        step_s, wait_s = self.metrics.get("time/step_s", 0.0), self.metrics.get("time/wait_s")
        return min(wait_s / step_s, 1.0) if step_s > 0 and wait_s is not None else None


def trend(values: Sequence[float], *, width: int = TREND_WIDTH, blocks: str = BLOCKS) -> str:
    """Draw values as marks of different heights, oldest first, neighbours averaged down to `width` marks.

    The scale goes from the lowest to the highest mark; a flat line is drawn low. Example: `trend([0, 1])` is the lowest and the
    highest block.
    """
    width = min(width, len(values))
    edges = [round(index * len(values) / width) for index in range(width + 1)] if width else []
    means = [math.fsum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = high - low
    return "".join(blocks[int((mean - low) / span * (len(blocks) - 1) + 0.5) if span > 0 else 0] for mean in means)


def clock_text(seconds: float) -> str:
    """`1:05`, or `2:00:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _facts(state: State) -> dict[str, str]:
    """Name and text of everything known about the last step; what was not told is left out."""
    metrics = state.metrics
    facts: dict[str, str] = {}
    if state.headline is not None:
        facts[HEADLINES[state.headline]] = f"{metrics[state.headline]:.3f}"
    if state.headline == "loss":
        facts |= _offline_facts(metrics)
    if "staleness/mean" in metrics or "staleness/max" in metrics:
        most = metrics.get("staleness/max", math.nan)
        facts["staleness"] = f"{metrics.get('staleness/mean', most):.1f} (max {most:.0f})"
    if "tokens_per_s" in metrics:
        facts["tokens/s"] = f"{metrics['tokens_per_s']:,.0f}"
    if "rollout/unscorable_share" in metrics:
        facts["unscorable"] = f"{metrics['rollout/unscorable_share']:.1%}"
    waited = state.waited_share()
    if waited is not None:
        facts["waited"] = f"{waited:.0%} of {metrics['time/step_s']:.1f} s"
    return facts


def _offline_facts(metrics: Mapping[str, float]) -> dict[str, str]:
    """What is known of a step that trains on a dataset, beside its loss."""
    facts: dict[str, str] = {}
    if "eval_loss" in metrics:
        facts["eval loss"] = f"{metrics['eval_loss']:.3f}"
    known = next((name for name in ACCURACIES if name in metrics), None)
    if known is not None:
        facts[ACCURACIES[known]] = f"{metrics[known]:.1%}"
    if "epoch" in metrics:
        facts["epoch"] = f"{metrics['epoch']:.2f}"
    return facts


def line(state: State) -> str:
    """A step on one line."""
    parts = [state.count, *(f"{name} {text}" for name, text in _facts(state).items())]
    left = state.left_s()
    if left:
        parts.append(f"left {clock_text(left)}")
    return "  ".join(parts)


def panel(state: State, blocks: str) -> RenderableType:
    """The last step on a few lines, with a bar and a trend drawn in these marks."""
    left = state.left_s()
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(state.steps, 1), completed=state.done, width=TREND_WIDTH, pulse=state.first is None)
    ends = "starting" if left is None else f"{clock_text(left)} left" if state.done < state.steps else "done"
    head.add_row(Text(state.count, style="bold"), bar, Text(ends, style="dim"))

    facts = _facts(state)
    body = Table.grid(padding=(0, 2))
    headline = HEADLINES.get(state.headline or "", "")
    value = facts.pop(headline, None)
    lines: list[RenderableType] = [head]
    if value is not None:
        drawn = trend(list(state.headlines), blocks=blocks)
        line = Text.assemble((f"{headline} ", "dim"), (value, "bold green"), "  ", (drawn, "green"))
        lines.append(line)
    if facts:
        body.add_row(*(Text.assemble((f"{name} ", "dim"), text) for name, text in facts.items()))
        lines.append(body)
    if state.wait:
        since = state.clock() - state.wait_since
        lines.append(Text.assemble(("waiting for ", "dim"), (state.wait, "yellow"), (f" {clock_text(since)}" if since >= 1 else "", "dim")))
    elif left is not None and state.done < state.steps:
        lines.append(Text("learning", style="dim"))  # a line that comes and goes would make the panel jump
    return Group(*lines)
