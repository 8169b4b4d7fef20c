"""Run by `test_offline_resume.py`: an offline run whose process is killed a moment after a step, `FILE STEP SECONDS`, or never, `FILE`.

At the latest it is killed at its last step, before it leaves a model: the steps may be much quicker than those that the moment is from.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from agentrl import runfile
from agentrl.progress import SilentProgress
from agentrl.run import train


class KilledAfter(SilentProgress):
    """Ends this process with SIGKILL, in whatever it does by then; two steps later at the latest, lest the run is over before."""

    def __init__(self, step: int, delay_s: float) -> None:
        super().__init__()
        self._step, self._delay_s = step, delay_s

    def step(self, metrics: dict[str, float]) -> None:
        """Set the clock at the step."""
        if metrics["step"] == metrics["steps"] and self._step >= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if metrics["step"] == self._step:
            threading.Timer(self._delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif 0 <= self._step <= metrics["step"] - 2:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    config = runfile.load(Path(sys.argv[1]))
    step, delay_s = (int(sys.argv[2]), float(sys.argv[3])) if len(sys.argv) > 2 else (-1, 0.0)
    train(config, progress=KilledAfter(step, delay_s))
