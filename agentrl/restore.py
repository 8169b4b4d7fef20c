"""What a run starts from: nothing, or what an earlier one left in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.admission import Admission
from agentrl.buffer import Buffer
from agentrl.errors import CheckpointError
from agentrl.replay import Replay
from agentrl.rollout_log import Disposed, RolloutLog, cut_dispositions, has_dispositions, next_lineage, read_groups
from agentrl.run_folder import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.config import RunConfig
    from agentrl.curriculum import Curriculum
    from agentrl.learner import Learner
    from agentrl.objectives import Needs
    from agentrl.run_folder import RunFolder


def load_checkpoint(learner: Learner, folder: RunFolder, checkpoint: Path) -> None:
    """Have the learner go on from a checkpoint; raises `CheckpointError` that says what to do about a damaged one."""
    try:
        learner.load(checkpoint)
    except CheckpointError as error:
        older = folder.latest_checkpoint(before=checkpoint) or "the start"
        said = str(error).rstrip(".")
        raise CheckpointError(f"{said}. If it is damaged, remove {checkpoint}, and the run goes on from {older}") from error


def open_buffer(
    config: RunConfig, folder: RunFolder, tasks: Curriculum, restored: Path | None, needs: Needs, *, resuming: bool
) -> tuple[int, Buffer]:
    """The buffer, with what earlier lineages finished put back; returns the new lineage with it."""
    admission = Admission(
        groups_per_step=config.groups_per_step,
        max_staleness=config.max_staleness,
        order=config.batch_order,
        on_bound=config.on_bound,
        num_groups=config.epochs * len(tasks) if config.epochs else None,
    )
    lineage = next_lineage(folder.rollouts)
    disposed: dict[int, Disposed] = {}
    state = RunState(step=0, lineage=0, places_trained=0, next_index=0)
    if resuming:
        if restored is not None:
            state = folder.read_state(restored)
            lineage = max(lineage, state.lineage + 1)
            if not has_dispositions(folder.rollouts):
                what = "has no dispositions.jsonl, which says what was trained"
                raise CheckpointError(f"{folder.rollouts} {what}; put it back, or start a new run from {folder.model}")
        folder.cut_metrics(state.step)
        disposed = cut_dispositions(folder.rollouts, state.step)
    log = RolloutLog(folder.rollouts, lineage)  # after the cut, which replaces a file that this one appends to
    buffer = Buffer(admission, tasks, log, config.limits, lineage=lineage, needs=needs)
    if resuming:
        tasks.restore(state.tasks)
        buffer.restore(state, disposed, read_groups(folder.rollouts, skip=disposed.keys()))
    return lineage, buffer


def open_replay(config: RunConfig, folder: RunFolder, restored: Path | None, needs: Needs) -> Replay | None:
    """The groups that may be trained again, as the checkpoint had them; None where the run file asks for none.

    The groups themselves are read from the rollout log. Raises `CheckpointError` that names those which it does not hold.
    """
    if config.replay is None:
        return None
    replay = Replay(config.replay, needs, seed=config.seed)
    if restored is not None:
        entries = folder.read_state(restored).replay
        groups = {group.index: group for group in read_groups(folder.rollouts, only={entry.index for entry in entries})}
        missing = [str(entry.index) for entry in entries if entry.index not in groups]
        if missing:
            raise CheckpointError(
                f"checkpoint {restored} replays group {', '.join(missing)}, which {folder.rollouts} does not hold: put its groups-*.jsonl "
                "back, or go on without with --set replay=null"
            )
        replay.restore(entries, groups)
    return replay
