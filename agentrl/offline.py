"""An offline run: the learner of every run, with a dataset where the buffer stands.

    dataset -> prepare (agentrl.data) -> examples in an order of the seed's -> one optimizer step after the other
                                                                               -> evaluations, checkpoints, the final model

Every rank reads the same rows and takes the same steps; rank 0 alone writes and shows. Which examples a step trains is a pure function of
the seed and of the step, so that a run that was killed goes on from its last checkpoint to the very same parameters.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agentrl.finishing import open_loggers, open_pusher
from agentrl.offline_run import learn_and_save
from agentrl.offline_start import assembled
from agentrl.processes import launched_rank
from agentrl.progress import SilentProgress
from agentrl.run_folder import RunResult

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.interrupt import Interrupt
    from agentrl.progress import Progress
    from agentrl.run_folder import RunFolder


def train_offline(config: RunConfig, folder: RunFolder, progress: Progress, interrupt: Interrupt, *, resuming: bool) -> RunResult:
    """Train on a dataset as `config` says, in a folder that is open on rank 0; every rank calls this.

    Raises `ConfigError` for what the user has to change, other `AgentRLError`s for a run that failed.
    """
    if launched_rank() > 0:
        progress = SilentProgress()
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
            key = "steps" if config.steps == run.config.steps else "epochs"
            progress.message(f"the run has done its {run.learner.step} steps already; for more: --set {key}=N")
        interrupted = learn_and_save(run)
    return RunResult(folder=folder.path, steps=int(run.last.get("step", run.learner.step)), interrupted=interrupted, last=run.last)
