"""An offline run: the learner of every run, with a dataset where the buffer stands.

    dataset -> prepare (agentrl.data) -> examples in an order of the seed's -> one optimizer step after the other
                                                                               -> evaluations, checkpoints, the final model

Every rank reads the same rows and takes the same steps; rank 0 alone writes and shows. Which examples a step trains is a pure function of
the seed and of the step, so that a run that was killed goes on from its last checkpoint to the very same parameters.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl import runfile
from agentrl.finishing import open_loggers, open_pusher
from agentrl.interrupt import Interrupt
from agentrl.lost_rank import told_in_one_line
from agentrl.offline_run import learn_and_save
from agentrl.offline_start import assembled
from agentrl.processes import launched_rank
from agentrl.progress import SilentProgress
from agentrl.run import RunResult
from agentrl.run_folder import RunFolder, new_folder

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.progress import Progress


def train_offline(config: RunConfig, *, resume: Path | None = None, progress: Progress) -> RunResult:
    """Train on a dataset as `config` says; with `resume`, go on with the run in that folder.

    Raises `ConfigError` for what the user has to change, other `AgentRLError`s for a run that failed.
    """
    if launched_rank() > 0:
        with told_in_one_line():
            folder = RunFolder(resume or Path(config.output or ""))
            return _train(config, folder, SilentProgress(), Interrupt(), resuming=resume is not None)
    folder = RunFolder(resume or (Path(config.output) if config.output else new_folder(config)))
    if resume is None:
        folder.create(runfile.dump(config))
    else:
        folder.reopen()
    interrupt = Interrupt()
    with contextlib.ExitStack() as stack:
        stack.callback(folder.close)
        stack.enter_context(interrupt.installed())
        try:
            return _train(config, folder, progress, interrupt, resuming=resume is not None)
        except KeyboardInterrupt:  # before there was anything to save, or a second time
            progress.message("interrupted; what was finished is in the run folder")
            return RunResult(folder=folder.path, steps=0, interrupted=True, last={})


def _train(config: RunConfig, folder: RunFolder, progress: Progress, interrupt: Interrupt, *, resuming: bool) -> RunResult:
    with contextlib.ExitStack() as stack:
        pusher = None
        if launched_rank() == 0:
            pusher = open_pusher(config, folder, progress.message)
            if pusher is not None:
                stack.callback(pusher.close)
            restored = folder.latest_checkpoint() if resuming else None
            step = 0 if restored is None else folder.read_state(restored).step
            stack.callback(open_loggers(config, folder, progress.message, step=step).close)
        run = assembled(config, folder, progress, interrupt, resuming=resuming)
        run.pusher = pusher
        if run.learner.step >= run.config.num_steps:
            progress.message(f"the run has done its {run.learner.step} steps already; for more: --set steps=N")
        interrupted = learn_and_save(run)
    return RunResult(folder=folder.path, steps=int(run.last.get("step", run.learner.step)), interrupted=interrupted, last=run.last)
