"""Scoring a model on an environment: mean and pass@k with intervals, on the environment's own evaluation split."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from agentrl import registry
from agentrl.buffer import Dispatch
from agentrl.errors import AgentRLError, ConfigError, RunCannotLearn
from agentrl.records import SamplingContract, Version
from agentrl.rollout_log import append_group
from agentrl.scratch import ScratchFolder
from agentrl.session import Session
from agentrl.tasks import make_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from agentrl.config import RunConfig
    from agentrl.progress import Progress
    from agentrl.records import Group

WAVES = 2
"""Rollouts in flight for each of the engine's slots: one that samples and one that waits, for its turn or for its environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """What an evaluation found; unscorable rollouts are outside every mean and counted."""

    num_tasks: int
    samples: int
    """Rollouts a task."""
    mean: float
    """Mean over tasks of each task's mean reward."""
    interval: tuple[float, float]
    """95% interval of the mean over tasks (normal, from the standard error over tasks)."""
    pass_at: dict[int, float]
    """k -> share of tasks solved (reward >= 1) by at least one of k samples, unbiased (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""
    unscorable: int
    mean_length: float
    """Sampled tokens a rollout."""
    task_means: dict[str, float]
    """Task id -> mean reward, for paired comparisons."""


class _Collector:
    """Gives out the tasks once each and gathers what comes back.

    Args:
        dispatches: what to play.
        most: tasks out at a time: what an engine is asked for waits there for its turn, and the wait counts against engine.timeout_s.
        progress: is told the mean so far.
        keep: is given each group as it comes, and may raise.
        patience: once so many groups have come and not one could be scored, the rest is not waited for.
    """

    def __init__(self, dispatches: list[Dispatch], progress: Progress, *, most: int, keep: Callable[[Group], None], patience: int) -> None:
        self._keep, self._patience = keep, patience
        self._room = most
        self.on_room: Callable[[], None] = lambda: None
        """Called when one more may go out."""
        self._todo = dispatches[::-1]
        self._by_index = {dispatch.index: dispatch for dispatch in dispatches}
        self._progress = progress
        self._changed = threading.Condition()
        self._groups: dict[int, Group] = {}
        self._scores: list[float] = []
        self._failure: AgentRLError | None = None

    def next_group(self) -> Dispatch | None:
        with self._changed:
            if not self._todo or self._room <= 0:
                return None
            self._room -= 1
            return self._todo.pop()

    def played(self, group: Group) -> None:
        with self._changed:
            self._room += 1
            self._groups[group.index] = group
            self._scores += [score for score in group.scores if score is not None]
            try:
                self._keep(group)
                if len(self._groups) == self._patience and not self._scores:
                    summarize(list(self._groups.values()), 1)  # raises, with the reasons
            except AgentRLError as error:
                self._failure = self._failure or error
            mean = float(np.mean(self._scores)) if self._scores else float("nan")
            self._progress.step({"step": len(self._groups), "steps": len(self._by_index), "reward/mean": mean})
            self._changed.notify_all()
        self.on_room()

    def lost(self, index: int) -> None:
        with self._changed:
            self._room += 1
            self._todo.append(self._by_index[index])

    def failed(self, error: AgentRLError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def wait(self, wait_s: float) -> list[Group]:
        with self._changed:
            while self._failure is None and len(self._groups) < len(self._by_index):
                if not self._changed.wait(wait_s):
                    raise RunCannotLearn(f"no group came back within limits.wait_s={wait_s:g} s; raise it, or look at the environment")
            if self._failure is not None:
                raise self._failure
            return [self._groups[index] for index in sorted(self._groups)]


def evaluate(
    config: RunConfig,
    *,
    model: str,
    num_tasks: int | None = None,
    samples: int = 1,
    seed: int = 0,
    temperature: float | None = None,
    output: Path | None = None,
    progress: Progress,
) -> EvalResult:
    """Play tasks of the `eval` split with one model, as it samples in training.

    Args:
        config: gives environment, sampling, engine and rollout settings.
        model: folder or Hub name.
        num_tasks: the first so many of the split's rows; all of them by default.
        samples: rollouts a task.
        seed: of the samples.
        temperature: 0 is greedy; the run's own by default.
        output: a folder for `rollouts.jsonl`.
        progress: where to show how far it is.

    Raises `ConfigError` where the environment has no evaluation tasks or `output` cannot be written, `RunCannotLearn` where nothing
    could be scored.
    """
    registry.refuse_while_importing("agentrl.evaluate")
    if config.engine.kind == "vllm" and config.engine.servers:
        raise ConfigError(
            f"engine.servers names running servers, which have weights of their own, and {model!r} is to be evaluated: "
            "use engine.launch in place of engine.servers, or engine.kind=embedded"
        )
    config = as_evaluated(config, model)
    with contextlib.ExitStack() as stack:
        folder = output or stack.enter_context(ScratchFolder("agentrl-eval-"))
        kept = stack.enter_context(_open_kept(folder))
        session = stack.enter_context(Session(config, folder / "logs"))
        session.start_engine(model)
        session.start_policies()
        rows = session.rows("eval")
        for notice in rows.notices:
            progress.message(notice)
        if len(rows) == 0:
            raise ConfigError(f"environment {session.environment!r} has no evaluation tasks: tasks('eval') is empty")
        count = min(len(rows), num_tasks or len(rows))
        tasks = [make_task(session.environment, rows, index) for index in range(count)]
        collector = _Collector(
            [Dispatch(index=index, task=task, version=Version()) for index, task in enumerate(tasks)],
            progress,
            most=max(1, WAVES * config.engine.slots * (config.engine.launch.servers if config.engine.launch else 1) // samples),
            keep=partial(append_group, kept),
            patience=config.limits.window_groups,
        )
        session.on_failure = collector.failed
        contract = SamplingContract(
            temperature=config.sampling.temperature if temperature is None else temperature, dtype=session.dtype, engine=config.engine.kind
        )
        fleet = session.start_fleet(
            contract=contract,
            next_group=collector.next_group,
            on_played=collector.played,
            on_lost=collector.lost,
            group_size=samples,
            seed=seed,
        )
        collector.on_room = fleet.pump
        fleet.pump()
        groups = collector.wait(config.limits.wait_s)
    return summarize(groups, samples)


def as_evaluated(config: RunConfig, model: str) -> RunConfig:
    """The run file as far as an evaluation of `model` is concerned: nothing is trained or published, and a server holds no adapters."""
    engine = config.engine.model_copy(update={"transport": "auto"})
    learner = config.learner.model_copy(update={"lora": None})
    # those that begin as the run's own model still do, whichever model is scored
    policies = {
        name: one.model_copy(update={"model": one.model or config.model, "update_every": None}) for name, one in config.policies.items()
    }
    changed = {"model": model, "max_staleness": 0, "engine": engine, "learner": learner, "policies": policies}
    return config.model_copy(update=changed)


def summarize(groups: Sequence[Group], samples: int) -> EvalResult:
    """The statistics of finished groups, one a task. Raises `RunCannotLearn` where no rollout was scorable."""
    means: dict[str, float] = {}
    solved: list[tuple[int, int]] = []
    lengths: list[int] = []
    unscorable = 0
    for group in groups:
        values = [score for score in group.scores if score is not None]
        unscorable += len(group.scores) - len(values)
        lengths += [rollout.num_sampled for rollout in group.rollouts]
        if values:
            means[group.task.id] = float(np.mean(values))
            solved.append((sum(value >= 1 for value in values), len(values)))
    if not means:
        reasons = {rollout.score.reason for group in groups for rollout in group.rollouts}
        raise RunCannotLearn(f"not one of {len(groups)} tasks could be scored: {'; '.join(sorted(reasons)[:3])}")
    column = np.array(list(means.values()))
    half = 1.96 * float(column.std(ddof=1)) / math.sqrt(len(column)) if len(column) > 1 else float("nan")
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
    return EvalResult(
        num_tasks=len(groups),
        samples=samples,
        mean=float(column.mean()),
        interval=(float(column.mean()) - half, float(column.mean()) + half),
        pass_at={k: float(np.mean([pass_at_k(total, right, k) for right, total in solved if total >= k])) for k in powers},
        unscorable=unscorable,
        mean_length=float(np.mean(lengths)),
        task_means=means,
    )


def pass_at_k(total: int, right: int, k: int) -> float:
    """Unbiased estimate that one of k samples is right, from `right` of `total` (arXiv:2107.03374, eq. 1)."""
    if total - right < k:
        return 1.0
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


@contextlib.contextmanager
def _open_kept(folder: Path) -> Iterator[int]:
    """The file for rollouts: each is on the disk as soon as it has come back."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "rollouts.jsonl", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot keep the rollouts in {folder}: {error}; give another --output") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
