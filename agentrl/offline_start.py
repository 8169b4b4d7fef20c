"""What an offline run starts from: its rows, its models, and what an earlier one left in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl import objectives, runfile
from agentrl.cores import cpu_share
from agentrl.density_ratio import weigh
from agentrl.errors import ConfigError
from agentrl.offline_batches import START, Begun, ShuffledBatches, batch_of, planned_steps
from agentrl.offline_run import OfflineRun, evaluated
from agentrl.reference_cache import compute, is_kept, read
from agentrl.restore import load_checkpoint
from agentrl.rollout.tokenizer import load_tokenizer
from agentrl.selection import resumed, selection
from agentrl.session import resolve_model
from agentrl.teacher_servers import TaughtBatches, check_served, taught, tutor_of
from agentrl.teachers import with_teachers
from agentrl.text_samples import openings
from agentrl.written_texts import WrittenBatches, author_of, trained_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.data.prepared import Prepared
    from agentrl.data.streamed import StreamedBatches
    from agentrl.interrupt import Interrupt
    from agentrl.learner import Learner
    from agentrl.objectives.base import Objective
    from agentrl.offline_batches import Batches, Examples
    from agentrl.progress import Progress
    from agentrl.run_folder import RunFolder, RunState
    from agentrl.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a run, tokenized."""

    data: Prepared | StreamedBatches
    splits: dict[str, Examples]
    """`train`, where it is not streamed, and `eval`, where there is one."""
    steps: int
    last: int | None
    """Examples of the whole run; None for as many as its steps take."""
    batch_size: int
    """Examples of a step."""


def assembled(config: RunConfig, folder: RunFolder, progress: Progress, interrupt: Interrupt, *, resuming: bool) -> OfflineRun:
    """The parts of a run, ready to learn; a collective.

    Raises `ConfigError` for rows, models or settings that do not fit, `CheckpointError` for a checkpoint that does not read back.
    """
    progress.waiting("the dataset")
    given = config
    with interrupt.waiting():  # there is nothing to save yet
        restored = folder.latest_checkpoint() if resuming else None
        at = None if restored is None else folder.read_state(restored)
        if restored is not None and at is not None:
            check_order(folder, restored, at.order, order_of(config))
        model_dir = resolve_model(config.model)
        tokenizer = load_tokenizer(model_dir)
        rows = _read(config, model_dir, tokenizer, progress, begun_of(at, config))
        config = config.model_copy(update={"steps": rows.steps})
        progress.waiting("the model")
        learner, splits = _learner(config, model_dir, rows.splits, folder, progress)
        if resuming:
            folder.cut_metrics(0 if at is None else at.step)
        if restored is not None:
            check_data(folder, restored, rows.data.fingerprint)
            load_checkpoint(learner, folder, restored)
        if config.learner.precompute_reference:
            splits = scored_by_reference(folder, splits, learner, progress)
    batches, held_out = _batches(config, rows, splits, learner, tokenizer, at)
    run = OfflineRun(config, folder, learner, tokenizer, batches, held_out, rows.data.counts, progress, interrupt)
    run.fingerprint, run.schema, run.order = rows.data.fingerprint, rows.data.schema, order_of(config)
    if at is not None:
        run.lineage, run.saved = at.lineage + 1, learner.step
    if held_out is not None:
        run.selection = resumed(_selection(config, learner, held_out), None if at is None else at.selection)
        run.prompts = openings(held_out, config.evaluation.samples)
    if run.writes:
        folder.keep_config(runfile.dump(given))  # without the steps that epochs come to: a resume may change what they follow from
    return run


def _read(config: RunConfig, model_dir: str, tokenizer: PreTrainedTokenizerBase, progress: Progress, begun: Begun) -> _Rows:
    """Read and tokenize all rows, or open the stream of them."""
    from agentrl.data.limits import limits_of
    from agentrl.data.prepare import prepare
    from agentrl.data.streamed import StreamedBatches

    objective = objectives.get(config.objective["name"])
    kind = objective.data
    assert kind is not None, "an offline run has an objective that learns from data"
    trained = trained_kind(kind, objective.needs(objectives.validate(config.objective)))
    limits = limits_of(model_dir)
    splits: dict[str, Examples] = {}
    if config.data.streaming:
        data: Prepared | StreamedBatches = StreamedBatches(config, trained, tokenizer, say=progress.message, **limits)
        steps, last, batch_size = config.num_steps, None, config.batch_size
    else:
        splits["train"] = data = prepare(config, trained, tokenizer, "train", say=progress.message, **limits)
        for name in idle_columns(objective, (name for part in data.parts for name in part.part_names)):
            progress.message(f"the rows have a column `{name}`, which objective {objective.name!r} does not read: it changes nothing")
        num_examples = len(data.order(None, 0))
        steps, last = planned_steps(config, num_examples, begun)
        batch_size = _fitting(config, num_examples, progress)
    if config.eval_dataset is not None or config.data.eval_rows:
        splits["eval"] = prepare(config, kind, tokenizer, "eval", say=progress.message, **limits)
    return _Rows(data=data, splits=splits, steps=steps, last=last, batch_size=batch_size)


def idle_columns(objective: Objective, part_names: Iterable[str]) -> list[str]:
    """The columns of numbers that rows have and that an objective does not read, which somebody may have expected to count."""
    from agentrl.data.encode import NUMBERS

    there = set(part_names)
    return [name for name in NUMBERS if name in there and name not in objective.reads]


def _fitting(config: RunConfig, num_examples: int, progress: Progress) -> int:
    """Examples of a step, told where they are fewer than was asked for. Raises `ConfigError` where the objective needs more."""
    size = batch_of(config, num_examples)
    found = f"`batch_size` is {config.batch_size}, and the dataset has {num_examples} example{'' if num_examples == 1 else 's'}"
    if size < 2 and objectives.get(config.objective["name"]).needs(objectives.validate(config.objective)).mixes_rows:
        name = config.objective["name"]
        raise ConfigError(f"{found}: objective {name!r} reads each prompt with another row's completion, so give it 2 or more")
    if size < config.batch_size:
        progress.message(f"{found}: each step trains all of them, once")
    return size


def _learner(
    config: RunConfig, model_dir: str, splits: dict[str, Examples], folder: RunFolder, progress: Progress
) -> tuple[Learner, dict[str, Examples]]:
    """The learner, without a reference where the rows bring its log-probs, and the rows with their weights where they have any."""
    from transformers import logging

    from agentrl.learner import Learner

    logging.disable_progress_bar()
    objective, options = objectives.get(config.objective["name"]), objectives.validate(config.objective)
    resolved = with_teachers(config, model_dir, resolve_model)
    known = config.learner.precompute_reference and all(is_kept(folder.reference, name, rows) for name, rows in splits.items())
    learner = Learner(resolved, objective, options, model_dir, threads=cpu_share(_alone(config), "learner"), reference=not known)
    ratio = learner.models.needs.density_ratio
    if ratio is not None:
        progress.waiting("the weights of rows")
        splits = weigh(splits, ratio, learner, folder.reference, seed=config.seed)
    return learner, splits


def _batches(
    config: RunConfig,
    rows: _Rows,
    splits: dict[str, Examples],
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    at: RunState | None,
) -> tuple[Batches, Examples | None]:
    """The examples of each step and those of the evaluation, with what teachers on servers say of them; streamed ones from `at` on."""
    from agentrl.data.streamed import StreamedBatches

    seed = config.seed if config.data.shuffle else None
    batches: Batches
    if isinstance(rows.data, StreamedBatches):
        batches = rows.data
        if at is not None and at.stream is not None:
            rows.data.go_on(at.step, at.stream)
    else:
        train, begun = splits["train"], begun_of(at, config)
        batches = ShuffledBatches(train, batch_size=rows.batch_size, seed=seed, last=rows.last, begun=begun)
    author = author_of(config, learner)
    if author is not None:
        batches = WrittenBatches(batches, author)
    held_out = splits.get("eval")
    tutor = tutor_of(config, learner.models.needs)
    if tutor is not None:
        check_served(config, learner.models.needs, tokenizer)
        held_out = None if held_out is None else taught(held_out, tutor)
        batches = TaughtBatches(batches, tutor, rows.steps)
    return batches, held_out


def _selection(config: RunConfig, learner: Learner, held_out: Examples) -> Selection:
    """How evaluations are compared. Raises `ConfigError` where they will not have the figure, before a step is taken; a collective."""
    options = config.evaluation
    found = selection(options.metric, options.higher_is_better, options.patience)
    if options.metric != "eval_loss":
        some = [held_out[index] for index in range(min(len(held_out), config.batch_size))]
        found.judged(learner.step, evaluated(learner, some))
    return found


def scored_by_reference(folder: RunFolder, splits: Mapping[str, Examples], learner: Learner, progress: Progress) -> dict[str, Examples]:
    """The rows with their reference's log-probs, computed where they are not on disk; the learner then holds no reference. A collective."""
    missing = [name for name, rows in splits.items() if not is_kept(folder.reference, name, rows)]
    learner.accelerator.wait_for_everyone()  # all have looked before one of them writes
    for name in missing:
        compute(folder.reference, name, splits[name], learner, lambda done: progress.waiting(f"the reference: {done} rows done"))
    learner.accelerator.wait_for_everyone()
    learner.forget_reference()
    return {name: read(folder.reference, name, rows) for name, rows in splits.items()}


def begun_of(at: RunState | None, config: RunConfig) -> Begun:
    """What the steps before a checkpoint trained, of rows that are not streamed."""
    if at is None or config.data.streaming:
        return START
    return Begun(at.step, at.step * config.batch_size if at.stream is None else at.stream["taken"])  # None in those of older versions


def order_of(config: RunConfig) -> dict[str, Any]:
    """The keys of a run file that choose the order of the same rows, with their values."""
    order: dict[str, Any] = {"data.streaming": config.data.streaming, "data.shuffle": config.data.shuffle}
    if config.data.shuffle:
        order["seed"] = config.seed
    if config.datasets:
        order["datasets"] = [one.weight for one in config.datasets]
    return order


def check_order(folder: RunFolder, checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where a resumed run would train rows in another order than it began with, some twice and others never.

    Args:
        folder: of the run.
        checkpoint: that it goes on from.
        before: `order_of` the run file that it was written under; nothing in those of older versions.
        now: that of today's.
    """
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        said = " and ".join(f"`{name}` was {_shown(before[name])} and is {_shown(now[name])}" for name in changed)
        raise ConfigError(
            f"{said}: that changes the order in which rows are trained, and the run in {folder.path} is in the midst of it (checkpoint "
            f"{checkpoint.name}); some rows would be trained twice and others never. Put it back as it was, or start a new run with model "
            "set to this one's weights. What may change on a resume: steps, epochs, batch_size, and whatever else chooses no rows"
        )


def _shown(value: Any) -> str:
    return f"weights {value}" if isinstance(value, list) else str(value).lower()


def check_data(folder: RunFolder, checkpoint: Path, fingerprint: str) -> None:
    """Raise `ConfigError` where a resumed run would go on with other rows than it began with."""
    before = folder.read_state(checkpoint).data
    if before and before != fingerprint:
        raise ConfigError(
            f"the rows that this run trains on are not those of its checkpoint {checkpoint}: the dataset, the tokenizer, the objective or "
            "a setting of `data` changed. Put it back as it was, or start a new run with model set to this one's weights"
        )


def _alone(config: RunConfig) -> RunConfig:
    """The run file of a learner that has all cores: there is no engine beside it."""
    return config.model_copy(update={"max_staleness": 0})
