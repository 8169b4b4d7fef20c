"""A training run: what starts, what waits for what, and how it ends.

    this process      supervisor and buffer (threads), learner (main thread)
    engine process    samples tokens; its weights are replaced between two tokens
    rollout processes play groups against the engine; environments and rewards run in killable processes of their own

The learner waits in `buffer.take` for the oldest groups; a finished group wakes it. Rollout processes wait for a group to play; a done
step (`buffer.trained`) admits new ones. A process that dies wakes the learner with an error; the run then writes a checkpoint and ends.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl import objectives, runfile
from agentrl.cores import cpu_share, spare_cores
from agentrl.curriculum import Curriculum
from agentrl.engines.vllm_setup import PROBED_TEXT, Adapter
from agentrl.errors import AgentRLError, CheckpointError, ConfigError, LearnerDiverged, PublishError, RunCannotLearn
from agentrl.finishing import open_loggers, open_pusher, push_at_end, push_while_training, pushes_after, write_model
from agentrl.follow import begins_apart, follow, sends_adapter, sent_weights
from agentrl.further import further_examples
from agentrl.interrupt import Abandoned, Interrupt
from agentrl.lost_rank import told_in_one_line
from agentrl.metrics import group_metrics, why_idle
from agentrl.needs import check_needs
from agentrl.offline import train_offline
from agentrl.policies import prune_snapshots, snapshot_folder, updates
from agentrl.processes import launched_rank
from agentrl.records import SamplingContract, Version
from agentrl.restore import load_checkpoint, open_buffer, open_replay
from agentrl.rollout.tokenizer import load_tokenizer
from agentrl.run_folder import RunFolder, RunResult, RunState, new_folder, read_metrics
from agentrl.session import Session, resolve_model
from agentrl.tasks import TaskSource
from agentrl.teacher_servers import check_served, scored, teaching_of, tutor_of
from agentrl.teachers import with_teachers
from agentrl.warm_start import read_warm_start, warm_up
from agentrl.written_texts import author_of, with_author

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from agentrl.buffer import Buffer
    from agentrl.config import RunConfig
    from agentrl.hub import Pusher
    from agentrl.learner import Learner
    from agentrl.objectives import Needs
    from agentrl.progress import Progress
    from agentrl.replay import Replay
    from agentrl.rollout.rows import RemoteRows


IDLE_STEPS = 10
"""Steps in a row without an update after which the user is told, and a run of nothing else fails; fewer may be chance."""


@dataclass
class Run:
    """The parts of a run on rank 0, assembled by `train`."""

    config: RunConfig
    folder: RunFolder
    lineage: int
    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    session: Session
    buffer: Buffer
    progress: Progress
    interrupt: Interrupt
    last: dict[str, float]
    saved: int | None = None
    """Step of the newest checkpoint of this lineage, or of the one it started from."""
    idle: int = 0
    """Steps in a row, up to the last one, that changed no weight."""
    replay: Replay | None = None
    """Groups of earlier steps, where those without a signal are replaced."""
    pusher: Pusher | None = None
    """What takes the model to the Hub."""

    def connect(self, *, restored: bool, warmed: bool = False) -> None:
        """Wait for the engine, give it the restored or warmed weights, and let groups flow between buffer and rollout processes."""
        self.session.on_failure = self.buffer.fail
        self.session.say = self.progress.message
        if sends_adapter(self.config):
            self.session.adapter = Adapter(config=self.learner.adapter_config(), weights=list(self.learner.adapter_weights()))
        if restored:
            self.saved = self.learner.step
        if restored or warmed or begins_apart(self.config) or self.session.joins_servers:
            self.publish(first=True)
        config, dtype = self.config, self.session.dtype
        contract = SamplingContract(temperature=config.sampling.temperature, dtype=dtype, engine=config.engine.kind)
        needs = self.learner.models.needs
        fleet = self.session.start_fleet(
            contract=contract,
            rival=None if needs.rival is None else replace(contract, reference_share=needs.rival),
            judged=needs.judge,
            teaching=teaching_of(config, needs),
            next_group=self.buffer.dispatch,
            on_played=self.buffer.finished,
            on_lost=self.buffer.lost,
        )
        self.buffer.on_open, self.buffer.on_cancel = fleet.pump, fleet.cancel
        self.buffer.on_finished = self.learner.wake_spare

    def learn(self) -> None:
        """Take the oldest groups, step, publish, admit; until the steps or the data are done."""
        from agentrl.learner import ranks

        while self.learner.step < self.config.num_steps:
            started = time.perf_counter()
            self.progress.waiting("rollouts")
            with self.interrupt.waiting():
                groups = self.buffer.take()
            filled, replayed = self.replay.fill(groups, self.learner.step) if self.replay is not None else (groups, {})
            trained = ranks.broadcast_groups(self.learner.accelerator, filled)
            if not groups:
                self.progress.message(f"the data ended after {self.learner.step} of {self.config.num_steps} steps")
                break
            taken = time.perf_counter()
            self.progress.waiting("learner")
            metrics = group_metrics(groups, step=self.learner.step) | replayed
            metrics |= self.learner.update(trained, spare_free=self.buffer.is_ahead)
            updated = time.perf_counter()
            self.progress.waiting("publishing")
            try:
                self.publish()
                self.update_policies()
            except AgentRLError as error:
                self.buffer.fail(error)
                raise
            finally:  # the step is done, whatever becomes of its weights: a checkpoint may follow
                self.buffer.trained(groups)
                if self.replay is not None:
                    self.replay.take_in(groups, self.learner.step)
                self.record(metrics, {"wait": taken - started, "update": updated - taken, "publish": time.perf_counter() - updated})
            if self.learner.step % self.config.checkpoint.every == 0:
                self.checkpoint()
            if pushes_after(self.config, self.learner.step):
                push_while_training(self.pusher, self.folder, self.learner, self.tokenizer, self.config)
        self.check_that_it_learned()

    def check_that_it_learned(self) -> None:
        """Raise `RunCannotLearn` where no step of the whole run has changed a weight; say so where it was too short to tell."""
        if self.learner.step == 0:
            raise RunCannotLearn(f"the run ended without one update: {self.buffer.why_nothing_came()}")
        steps = read_metrics(self.folder.path)  # those of earlier lineages too
        if steps and all(metrics.get("learner/skipped") for metrics in steps):
            said = f"not one of {self.learner.step} steps changed a weight: {why_idle(steps)}"
            if len(steps) >= IDLE_STEPS:
                raise RunCannotLearn(said)
            self.progress.message(said)

    def publish(self, *, first: bool = False) -> None:
        """Send the learner's weights to the engine; the version counts once they are read back."""
        fingerprint = self.learner.fingerprint()
        version = Version(lineage=self.lineage, step=self.learner.step)
        weights = sent_weights(self.config, self.learner)
        if first and self.session.joins_servers and self.learner.accelerator.num_processes == 1:
            # Another model shows here, whatever its name is.
            ids = self.tokenizer(PROBED_TEXT, add_special_tokens=False).input_ids
            checksum = self.session.publish(weights, version, self.session.probe(ids, self.learner.logprobs_of(ids)))
        else:
            checksum = self.session.publish(weights, version)
        before = self.session.published
        if before is not None and before[0] != fingerprint and before[1] == checksum and self.session.dtype == "float32":
            raise PublishError(
                f"step {self.learner.step} changed the learner's parameters but the engine's weights are those of the step before: "
                "what is published is not what is trained"
            )
        self.session.published = (fingerprint, checksum)

    def update_policies(self) -> None:
        """Give the frozen policies that follow the trained one its weights, and keep those for a resume."""
        version = Version(lineage=self.lineage, step=self.learner.step)
        for name in updates(self.config, version.step):
            assert self.session.policies is not None
            with self.folder.writing_snapshot(snapshot_folder(self.folder.path, name, version.step)) as draft:
                self.learner.export(draft, self.tokenizer)
            self.session.policies.publish(name, self.learner.named_weights(), version)

    def record(self, metrics: dict[str, float], seconds: dict[str, float]) -> None:
        """Write and show one step."""
        counts = self.buffer.counts()
        total = sum(seconds.values())
        metrics |= {f"time/{name}_s": value for name, value in seconds.items()}
        metrics |= {
            "time/step_s": total,
            "tokens_per_s": metrics["rollout/sampled_tokens"] / total,
            "rollout/unscorable_share": counts.unscorable_share,
            "rollout/unscorable_groups": float(counts.unscorable_groups),
            "rollout/requeued": float(counts.requeued),
            "rollout/filtered_groups": float(counts.filtered_groups),
            "buffer/waiting": float(counts.waiting),
            "buffer/in_flight": float(counts.in_flight),
            "rollout/loop_lag_s": self.session.loop_lag_s,
            **counts.tasks,
        }
        self.last = {"step": self.learner.step, "lineage": self.lineage, **metrics}
        self.folder.log_metrics(self.last)
        self.progress.step(self.last)
        self.idle = self.idle + 1 if metrics["learner/skipped"] else 0
        if self.idle == IDLE_STEPS:
            self.progress.message(f"{IDLE_STEPS} steps in a row changed no weight: in every group all rewards were equal")

    def checkpoint(self) -> None:
        """Write the learner and the run's cursor; every step so far is then beyond any crash."""
        if self.saved == self.learner.step:
            return  # the same weights are there already, and the logs say the rest
        self.progress.waiting("checkpoint")
        trained, next_index = self.buffer.cursor()
        self.buffer.sync()
        entries = self.replay.entries if self.replay is not None else ()
        state = RunState(
            step=self.learner.step,
            lineage=self.lineage,
            places_trained=trained,
            next_index=next_index,
            replay=entries,
            tasks=self.buffer.known_tasks(),
        )
        with self.folder.writing_checkpoint(state) as draft:
            self.learner.save(draft)
        self.saved = self.learner.step
        self.folder.prune_checkpoints(self.config.checkpoint.keep)
        prune_snapshots(self.config, self.folder.path, self.folder.checkpoint_steps())

    def export(self) -> None:
        """Write the model for everybody else."""
        self.progress.waiting("the final model")
        write_model(self.folder, self.learner, self.tokenizer, self.config)


def train(config: RunConfig, *, resume: Path | None = None, progress: Progress) -> RunResult:
    """Train as `config` says; with `resume`, go on with the run in that folder.

    Raises `ConfigError` for what the user has to change, other `AgentRLError`s for a run that failed (a checkpoint is written where
    the learner is sound).
    """
    objective = objectives.get(config.objective["name"])
    objective_config = objectives.validate(config.objective)
    offline = objective.is_offline(objective_config)
    if not offline:
        check_needs(config, objective.needs(objective_config), objective.name)
    if launched_rank() > 0:
        with told_in_one_line():
            if offline:
                return train_offline(config, RunFolder(resume or Path(config.output or "")), progress, Interrupt(), resuming=bool(resume))
            follow(config, objective, objective_config, RunFolder(resume).latest_checkpoint() if resume else None)
        return RunResult(folder=resume or Path(config.output or ""), steps=config.num_steps, interrupted=False, last={})
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
            if offline:
                return train_offline(config, folder, progress, interrupt, resuming=resume is not None)
            return _train(config, folder, objective, objective_config, progress, interrupt, stack, resuming=resume is not None)
        except KeyboardInterrupt:  # before there was anything to save, or a second time
            progress.message("interrupted; what was finished is in the run folder")
            return RunResult(folder=folder.path, steps=0, interrupted=True, last={})


def _train(
    config: RunConfig,
    folder: RunFolder,
    objective: objectives.Objective,
    objective_config: objectives.ObjectiveConfig,
    progress: Progress,
    interrupt: Interrupt,
    stack: contextlib.ExitStack,
    *,
    resuming: bool,
) -> RunResult:
    progress.waiting("start")
    with interrupt.waiting():  # there is nothing to save yet
        pusher = open_pusher(config, folder, progress.message)
        if pusher is not None:
            stack.callback(pusher.close)
        session = stack.enter_context(Session(config, folder.logs))
        needs = objective.needs(objective_config)
        restored = folder.latest_checkpoint() if resuming else None
        earlier = read_warm_start(config, needs) if config.warm_start is not None and restored is None else None
        session.start_engine(config.model, reference=needs.rival is not None)  # loads while the learner does
        at = folder.read_state(restored) if restored is not None else None
        stack.callback(open_loggers(config, folder, progress.message, step=at.step if at is not None else 0).close)
        session.start_policies(folder.path, Version(lineage=at.lineage, step=at.step) if at is not None else None)
        rows = session.rows("train")
        for notice in rows.notices:
            progress.message(notice)
        check_judge(rows, needs, objective.name, session.environment)
        source = TaskSource(session.environment, rows, config.seed)
        tasks = Curriculum(source, config.curriculum, quarantine_after=config.limits.quarantine_after, seed=config.seed)
        tasks.say = progress.message
        from transformers import logging  # torch takes seconds to import: a wrong run file has been refused by now

        from agentrl.learner import Learner

        logging.disable_progress_bar()
        threads, spare = cpu_share(config, "learner"), spare_cores(config)
        taught = with_teachers(config, session.model_dir, resolve_model)
        learner = Learner(taught, objective, objective_config, session.model_dir, threads=threads, spare_threads=spare)
        tokenizer = load_tokenizer(session.model_dir)
        further = further_examples(config, objective.data, needs, tokenizer, session.model_dir, say=progress.message)
        learner.further = scored(with_author(further, author_of(config, learner)), tutor_of(config, needs))
        check_served(config, needs, tokenizer)
        if restored is not None:
            load_checkpoint(learner, folder, restored)
        lineage, buffer = open_buffer(config, folder, tasks, restored, needs, resuming=resuming)
        stack.callback(buffer.close)
        run = Run(config, folder, lineage, learner, tokenizer, session, buffer, progress, interrupt, last={})
        run.replay, run.pusher = open_replay(config, folder, restored, needs), pusher
        if earlier is not None:
            warm_up(learner, config, folder, earlier, progress)
            run.checkpoint()  # of step 0: a resume does not warm up again
        run.connect(restored=restored is not None, warmed=earlier is not None)
        folder.keep_config(runfile.dump(config))
        if learner.step >= config.num_steps:
            progress.message(f"the run has done its {learner.step} steps already; for more: --set steps=N")
    interrupted = _learn_and_save(run)
    return RunResult(folder=folder.path, steps=learner.step, interrupted=interrupted, last=run.last)


def check_judge(rows: RemoteRows, needs: Needs, name: str, environment: str) -> None:
    """Raise `ConfigError` where the objective learns from comparisons and the environment makes none."""
    if needs.judge and not rows.compares:
        raise ConfigError(
            f"objective {name!r} asks which of two episodes is better, and environment {environment!r} defines no compare(first, second): "
            "define it, or set objective.preferences=reward"
        )


def _learn_and_save(run: Run) -> bool:
    """Learn to the end, or to whatever ends the run; the learner's state is on disk after it. Returns whether it was interrupted."""
    from agentrl.learner import ranks

    interrupted = False
    try:
        run.learn()
    except Abandoned:
        raise
    except KeyboardInterrupt:
        interrupted = True
    except (CheckpointError, LearnerDiverged):
        raise  # the disk does not take another one, or what is in memory is not worth one
    except AgentRLError as error:
        if run.learner.step > 0 and run.learner.accelerator.num_processes == 1:
            _save_after(error, run)
        raise run.session.explained(error) from None
    if interrupted:
        ranks.broadcast_groups(run.learner.accelerator, [])  # the other ranks wait for groups: no more will come
    run.session.stop_fleet()
    run.checkpoint()
    run.export()
    if interrupted:
        run.progress.message(f"interrupted after step {run.learner.step}; go on with: agentrl train --resume {run.folder.path}")
    else:
        run.buffer.drop_rest()
        push_at_end(run.pusher, run.folder, run.learner.step, run.progress, run.interrupt)
    return interrupted


def _save_after(error: AgentRLError, run: Run) -> None:
    """Write a checkpoint after a failure; that this fails too must not hide the failure itself."""
    try:
        run.checkpoint()
    except CheckpointError as second:
        run.progress.message(f"{second}")
        return
    if run.learner.step < run.config.num_steps:
        run.progress.message(f"the run stopped after step {run.learner.step}; go on with: agentrl train --resume {run.folder.path}")
