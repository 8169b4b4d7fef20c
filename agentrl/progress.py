"""What a person sees of a run: a live panel on a terminal, plain lines everywhere else.

Steps are told on the learner's thread and waits on any other, so every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.live import Live

from agentrl.processes import launched_rank
from agentrl.progress_panel import ASCII_BLOCKS, BLOCKS, State, line, panel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.console import RenderableType


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
                `time/step_s`, `time/wait_s` (a part of the former); without a reward also `loss`, `eval_loss`, `epoch` and one of
                `rewards/accuracies`, `accuracy` and `mean_token_accuracy`.
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
        self._state = State(steps=steps, noun=noun, clock=clock)
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
                self._print(line(self._state))

    def step(self, metrics: Mapping[str, float]) -> None:
        """Print a line, or hold it back for the next one."""
        with self._lock:
            now = self._state.clock()
            self._state.add(metrics)
            self._unprinted = now - self._printed_at < 1 and self._state.done < self._state.steps
            if not self._unprinted:
                self._printed_at = now
                self._print(line(self._state))

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
        self._state = State(steps=steps, noun=noun, clock=clock)
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
            return panel(self._state, blocks)


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
