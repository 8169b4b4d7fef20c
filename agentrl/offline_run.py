"""The loop of an offline run: a step, now and then an evaluation, a checkpoint or a push, and the model at the end."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.finishing import push_at_end, push_while_training, pushes_after, write_model
from agentrl.run_folder import RunFolder, RunState
from agentrl.text_samples import answered, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.examples import Example
    from agentrl.hub import Pusher
    from agentrl.interrupt import Interrupt
    from agentrl.learner import Learner
    from agentrl.offline_batches import Batches, Examples
    from agentrl.progress import Progress
    from agentrl.selection import Selection
    from agentrl.text_samples import Opening

LOST_ROWS = ("data/skipped", "data/dropped_long", "data/truncated")
"""Counts of rows that are not trained as they stand: beside the metrics of every step."""


@dataclass
class OfflineRun:
    """The parts of an offline run on one rank, assembled by `train_offline`."""

    config: RunConfig
    folder: RunFolder
    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    batches: Batches
    held_out: Examples | None
    counts: dict[str, float]
    """What became of the rows."""
    progress: Progress
    interrupt: Interrupt
    lineage: int = 0
    fingerprint: str = ""
    """Of the rows that are trained."""
    order: dict[str, Any] = field(default_factory=dict)
    """What chose the order of these rows, key by key."""
    last: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    saved: int | None = None
    """Step of the newest checkpoint, or of the one that the run started from."""
    selection: Selection | None = None
    """Which evaluation was the best, where there is one before the end."""
    pusher: Pusher | None = None
    """What takes the model to the Hub, on the rank that writes."""
    schema: str = ""
    """Of the dataset's rows, in words."""
    prompts: Sequence[Opening] = ()
    """What the model is asked at each evaluation."""

    @property
    def writes(self) -> bool:
        """Whether this rank writes and shows."""
        return bool(self.learner.accelerator.is_main_process)

    def learn(self) -> bool:
        """Step after step to the end of the run; returns whether it was interrupted."""
        from agentrl.learner import ranks

        every = self.config.evaluation.every
        while self.learner.step < self.config.num_steps:
            if ranks.any_of(self.learner.accelerator, self.interrupt.requested):
                return True
            if self.selection is not None and self.selection.exhausted:  # looked at first: a resumed run may be past it already
                self.progress.message(f"stopped early, after step {self.learner.step}: {self.selection.said}")
                if self.last:
                    self.progress.step(self.last | {"steps": self.learner.step})
                break
            self.progress.waiting("")
            started = time.perf_counter()
            examples = self.batches.take(self.learner.step)
            taken = time.perf_counter()
            metrics = self.learner.update_examples(examples)
            self.record(metrics, {"data": taken - started, "step": time.perf_counter() - started})
            if every is not None and self.learner.step % every == 0:
                self.evaluate()
            if self.learner.step % self.config.checkpoint.every == 0:
                self.checkpoint()
            if pushes_after(self.config, self.learner.step):
                self.push()
        return False

    def record(self, metrics: dict[str, float], seconds: dict[str, float]) -> None:
        """Write and show one step."""
        metrics |= {f"time/{name}_s": value for name, value in seconds.items()}
        metrics |= {
            "epoch": self.batches.epoch(self.learner.step),
            "steps": self.config.num_steps,
            "tokens_per_s": metrics["num_tokens"] / seconds["step"],
        }
        metrics |= {name: self.counts[name] for name in LOST_ROWS if name in self.counts}
        self.last = {"step": self.learner.step, "lineage": self.lineage, **metrics}
        if self.writes:
            self.folder.log_metrics(self.last)
            self.progress.step(self.last | {name: value for name, value in self.figures.items() if name == "eval_loss"})

    def evaluate(self) -> dict[str, float]:
        """The loss and metrics of the held-out rows, `eval_...`; a collective."""
        if self.held_out is None:
            return {}
        self.progress.waiting("evaluation")
        started = time.perf_counter()
        figures = evaluated(self.learner, self.held_out) | {"time/evaluation_s": time.perf_counter() - started}
        if self.writes:
            self.folder.log_evaluation({"step": self.learner.step, "lineage": self.lineage, **figures})
        self.figures = figures
        if self.selection is not None:
            self.selection = self.selection.judged(self.learner.step, figures)
        if self.writes:
            self.progress.message(told(self.learner.step, figures, self.selection))
            self.show_answers()
        if self.selection is not None and self.selection.improved and self.config.evaluation.keep_best:
            self.checkpoint()
        return figures

    def show_answers(self) -> None:
        """What the model answers now, on the terminal and in the run folder."""
        if self.prompts:
            samples = answered(self.learner, self.tokenizer, self.prompts, max_tokens=self.config.sampling.max_tokens)
            for sample in samples:
                self.folder.log_sample({"step": self.learner.step, **asdict(sample)})
            self.progress.message(table(samples, step=self.learner.step))

    def push(self) -> None:
        """Begin to push the weights as they are; a collective."""
        if self.writes:
            push_while_training(self.pusher, self.folder, self.learner, self.tokenizer, self.config, data=self.counts, schema=self.schema)
        else:
            self.learner.export(Path(), None)

    def checkpoint(self) -> None:
        """Write the learner and the run's place in its data; a collective."""
        if self.saved == self.learner.step:
            return
        self.progress.waiting("checkpoint")
        if not self.writes:
            self.learner.save(Path())
        else:
            step = self.learner.step
            state = RunState(
                step=step,
                lineage=self.lineage,
                places_trained=step,
                next_index=step,
                selection=self.selection,
                data=self.fingerprint,
                stream=self.batches.place_of(step),
                order=self.order,
            )
            with self.folder.writing_checkpoint(state) as draft:
                self.learner.save(draft)
            self.folder.prune_checkpoints(self.config.checkpoint.keep, spared=self.best_step)
        self.saved = self.learner.step

    @property
    def best_step(self) -> int | None:
        """Step of the evaluation whose weights are to be kept."""
        return self.selection.best_step if self.selection is not None and self.config.evaluation.keep_best else None

    def export(self) -> None:
        """Write the model for everybody else, that of the best evaluation where it is kept; a collective."""
        self.progress.waiting("the final model")
        best = ""
        if self.best_step is not None and self.selection is not None:
            best = self.selection.said
            if self.best_step != self.learner.step:
                self.go_back_to(self.best_step)
        if self.writes:
            write_model(self.folder, self.learner, self.tokenizer, self.config, data=self.counts, schema=self.schema, best=best)
        else:
            self.learner.export(Path(), None)
        if self.selection is not None and self.selection.judged_step is not None:
            self.progress.message(self.selection.said + (f"; its weights are {self.folder.model}" if best else ""))

    def go_back_to(self, step: int) -> None:
        """Take the weights of an earlier checkpoint; a collective."""
        from agentrl.learner import ranks

        path = ranks.gather_messages(self.learner.accelerator, str(self.folder.checkpoint_of(step)), str)[0]
        self.learner.load(Path(path))


def told(step: int, figures: Mapping[str, float], selection: Selection | None) -> str:
    """An evaluation in a line."""
    names = dict.fromkeys(["eval_loss", *([selection.metric] if selection is not None else [])])
    said = ", ".join(f"{name} {figures[name]:.4g}" for name in names)
    best = "" if selection is None or selection.best is None else " (the best so far)" if selection.improved else f" ({selection.said})"
    return f"step {step}: {said}{best}"


def evaluated(learner: Learner, examples: Examples | Sequence[Example]) -> dict[str, float]:
    """The loss and metrics of all these examples, exactly: as those of one step. A collective."""
    figures = learner.evaluate_examples([examples[index] for index in range(len(examples))])
    return {f"eval_{name}": value for name, value in figures.items() if not name.startswith(("learner/", "time/"))}


def learn_and_save(run: OfflineRun) -> bool:
    """Learn to the end, or to an interruption; the learner's state is on disk after it. Returns whether it was interrupted."""
    interrupted = run.learn()
    step = run.learner.step
    if interrupted and step == 0:  # a checkpoint of nothing would only keep the same command from being given again
        run.progress.message("interrupted before the first step: there is nothing to keep, and the same command starts the run again")
        return True
    if not interrupted and (run.selection is None or run.selection.judged_step != step):
        run.evaluate()
    run.checkpoint()
    run.export()
    if interrupted:
        run.progress.message(f"interrupted after step {step}; go on with: agentrl train --resume {run.folder.path}")
    else:
        push_at_end(run.pusher, run.folder, step, run.progress, run.interrupt)
    return interrupted
