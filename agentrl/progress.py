"""What a person sees of a run: a live panel on a terminal, plain lines everywhere else.

Steps are told on the learner's thread and waits on any other, so every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agentrl.processes import launched_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from rich.console import RenderableType

BLOCKS = "".join(chr(0x2581 + height) for height in range(8))
"""Marks of a trend, low to high."""
ASCII_BLOCKS = "_.:-=+*#"
TREND_WIDTH = 40
"""Marks in a trend, each the mean of its share of the steps."""
MAX_REWARDS = 100_000
"""Rewards kept for the trend."""


class Progress(Protocol):
    """Where a run tells how it goes. A context manager, entered once."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the last state on the screen."""
        ...

    def step(self, metrics: Mapping[str, float]) -> None:
        """Show a step that is done.

        Args:
            metrics: of these, whichever are there: `step` (steps done), `steps` (how many there will be, where that was not known at
                first), `reward/mean`, `staleness/mean`, `staleness/max`, `tokens_per_s`, `rollout/unscorable_share` (0 to 1),
                `time/step_s`, `time/wait_s` (a part of the former).
        """
        ...

    def waiting(self, on: str) -> None:
        """Show what the run waits for, as the end of "waiting for"; an empty text once it waits no more."""
        ...

    def message(self, text: str) -> None:
        """Say something once, above whatever else is shown."""
        ...


def default_progress(
    steps: int, *, noun: str = "step", console: Console | None = None, environ: Mapping[str, str] = os.environ
) -> Progress:
    """The panel on a terminal, plain lines elsewhere, and nothing on ranks other than the first.

    Args:
        steps: how many there will be.
        noun: what a step is called.
        console: where to show it; standard output by default.
        environ: may say which of several ranks this process is.
    """
    console = console or Console()
    if launched_rank(environ) > 0:
        return SilentProgress()
    return TerminalProgress(steps, noun=noun, console=console) if console.is_terminal else PlainProgress(steps, noun=noun, console=console)


class SilentProgress:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to end."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """Ignore it."""

    def waiting(self, on: str) -> None:
        """Ignore it."""

    def message(self, text: str) -> None:
        """Ignore it."""


class PlainProgress:
    """One line a step, at most one a second, the last step always; before the first step, what the run waits for."""

    def __init__(self, steps: int, *, noun: str = "step", console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = _State(steps=steps, noun=noun, clock=clock)
        self._console = console
        self._lock = threading.Lock()
        self._printed_at = -math.inf
        self._wait_printed_at = -math.inf
        self._unprinted = False

    def __enter__(self) -> Self:
        """Begin to count."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Print the newest step, where its line was held back."""
        with self._lock:
            if self._unprinted:
                self._print(_line(self._state))

    def step(self, metrics: Mapping[str, float]) -> None:
        """Print a line, or hold it back for the next one."""
        with self._lock:
            now = self._state.clock()
            self._state.add(metrics)
            self._unprinted = now - self._printed_at < 1 and self._state.done < self._state.steps
            if not self._unprinted:
                self._printed_at = now
                self._print(_line(self._state))

    def waiting(self, on: str) -> None:
        """Print it while nothing else is there to be seen, at most once a second."""
        with self._lock:
            now = self._state.clock()
            if on and on != self._state.wait and self._state.first is None and now - self._wait_printed_at >= 1:
                self._wait_printed_at = now
                self._print(f"waiting for {on}")
                self._state.wait = on

    def message(self, text: str) -> None:
        """Print it."""
        with self._lock:
            self._print(text)

    def _print(self, text: str) -> None:
        _say(self._console, text)


class TerminalProgress:
    """A panel that stays at the bottom of the terminal and is redrawn four times a second."""

    def __init__(self, steps: int, *, noun: str = "step", console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = _State(steps=steps, noun=noun, clock=clock)
        self._console = console
        self._lock = threading.Lock()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        """Draw the panel."""
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the last panel on the screen, without the wait."""
        self.waiting("")
        self._live.stop()

    def step(self, metrics: Mapping[str, float]) -> None:
        """Take it into the next drawing."""
        with self._lock:
            self._state.add(metrics)

    def waiting(self, on: str) -> None:
        """Take it into the next drawing."""
        with self._lock:
            if on != self._state.wait:
                self._state.wait, self._state.wait_since = on, self._state.clock()

    def message(self, text: str) -> None:
        """Print it above the panel."""
        _say(self._console, text)

    def _render(self) -> RenderableType:
        with self._lock:
            blocks = BLOCKS if self._console.encoding.startswith("utf") else ASCII_BLOCKS
            return _panel(self._state, blocks)


def _say(console: Console, text: str) -> None:
    """Print, and be silent from then on where nobody can read it: a run is worth more than what it says."""
    try:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    except (OSError, SystemExit):  # a full disk; rich's own answer to a closed pipe
        console.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what is still buffered must not fail at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, console.file.fileno())
            os.close(nowhere)


@dataclass(slots=True)
class _State:
    """What was told so far, and what follows from it."""

    steps: int
    noun: str
    clock: Callable[[], float]
    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_REWARDS))
    wait: str = ""
    wait_since: float = 0.0
    first: tuple[int, float] | None = None
    """Steps done and time when this process began to count: a resumed run does not start at 0."""

    def add(self, metrics: Mapping[str, float]) -> None:
        self.metrics = dict(metrics)
        self.done = int(metrics.get("step", self.done + 1))
        self.steps = int(metrics.get("steps", self.steps))
        if self.first is None:
            self.first = (self.done - 1, self.clock() - metrics.get("time/step_s", 0.0))
        if math.isfinite(metrics.get("reward/mean", math.nan)):
            self.rewards.append(metrics["reward/mean"])

    def left_s(self) -> float | None:
        """Seconds to the last step at the pace so far; None before the first step."""
        if self.first is None:
            return None
        at, since = self.first
        return (self.clock() - since) / max(self.done - at, 1) * max(self.steps - self.done, 0)

    def waited_share(self) -> float | None:
        """Part of the last step in which the learner waited."""
        step_s = self.metrics.get("time/step_s", 0.0)
        return min(self.metrics.get("time/wait_s", 0.0) / step_s, 1.0) if step_s > 0 else None


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


def _facts(state: _State) -> dict[str, str]:
    """Name and text of everything known about the last step; what was not told is left out."""
    metrics = state.metrics
    facts: dict[str, str] = {}
    if "reward/mean" in metrics:
        facts["reward"] = f"{metrics['reward/mean']:.3f}"
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


def _line(state: _State) -> str:
    parts = [f"{state.noun} {state.done}/{state.steps}", *(f"{name} {text}" for name, text in _facts(state).items())]
    left = state.left_s()
    if left:
        parts.append(f"left {clock_text(left)}")
    return "  ".join(parts)


def _panel(state: _State, blocks: str) -> RenderableType:
    left = state.left_s()
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(state.steps, 1), completed=state.done, width=TREND_WIDTH, pulse=state.first is None)
    ends = "starting" if left is None else f"{clock_text(left)} left" if state.done < state.steps else "done"
    head.add_row(Text(f"{state.noun} {state.done}/{state.steps}", style="bold"), bar, Text(ends, style="dim"))

    facts = _facts(state)
    body = Table.grid(padding=(0, 2))
    reward = facts.pop("reward", None)
    lines: list[RenderableType] = [head]
    if reward is not None:
        line = Text.assemble(("reward ", "dim"), (reward, "bold green"), "  ", (trend(list(state.rewards), blocks=blocks), "green"))
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
