"""What a run file may hold of an offline run, and what of an online one, said before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl import objectives
from agentrl.adapter_needs import mistakes_of_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.config import RunConfig
    from agentrl.objectives import Needs

Mistake = tuple[tuple[str, ...], str]

ONLINE_KEYS = (
    *("env", "envs", "rewards", "reward_weights", "judge", "group_size", "groups_per_step", "max_staleness", "batch_order", "on_bound"),
    *("policies", "curriculum", "replay", "warm_start"),
)
"""Keys that only rollouts give a meaning."""
OFFLINE_KEYS = ("datasets", "eval_dataset", "data", "batch_size", "evaluation")
"""Keys that only a dataset in the place of rollouts gives a meaning."""


def mistakes_of_online(config: RunConfig, name: str) -> Iterator[Mistake]:
    """Keys that an online run would not read, each with what to do about it."""
    for key in _set(config, OFFLINE_KEYS):
        yield (
            (key,),
            f"`{key}` is for objectives that learn from a dataset, such as sft or dpo, and {name!r} learns from rollouts: remove it",
        )
    if config.learner.ema is not None and config.learner.ema.evaluate:
        yield (
            ("learner", "ema", "evaluate"),
            f"`learner.ema.evaluate` is for runs that evaluate while they train, and {name!r} learns from rollouts: remove it, and "
            "evaluate the average in model/ema when the run has ended",
        )


def mistakes_of_mixture(config: RunConfig, needs: Needs) -> Iterator[Mistake]:
    """What is wrong with a run that trains a dataset's own texts beside the policy's."""
    if needs.own_share > 0 and config.dataset is None:
        yield (
            ("dataset",),
            f"`objective.lmbda` is {needs.own_share:g}: the policy answers the prompts of a `dataset`, whose own completions are trained "
            "beside, and none is set",
        )


def mistakes_of_offline(config: RunConfig, needs: Needs, name: str) -> Iterator[Mistake]:
    """What is wrong with an offline run, each with the key that would have to change.

    Args:
        config: the run file.
        needs: of the objective under its options.
        name: of the objective.
    """
    for key in _set(config, ONLINE_KEYS):
        yield (key,), f"`{key}` is for rollouts, and objective {name!r} learns from the rows of a `dataset`: remove it"
    if config.dataset is None and not config.datasets:
        yield ("dataset",), f"objective {name!r} learns from a dataset: set `dataset` to a file, a folder or a Hub name"
    if config.dataset is not None and config.datasets:
        yield ("datasets",), "`dataset` and `datasets` are both set: remove one of them"
    if config.sampling.temperature != 1 and not (needs.teacher is not None and needs.teacher.writes):
        own = [f"objective.{key}" for key in objectives.get(name).config.model_fields if key.endswith("temperature")]
        cure = f"remove it; the divergence has its own in {' and '.join(own)}" if own else "remove it"
        yield (
            ("sampling", "temperature"),
            f"`sampling.temperature` is {config.sampling.temperature:g}, and objective {name!r} learns from rows that nobody sampled: its "
            f"loss is of the distribution at temperature 1: {cure}",
        )
    if config.data.streaming and config.steps is None:
        yield ("steps",), "`data.streaming` reads rows as they are needed, so that nobody knows how many there are: set `steps`"
    if config.data.streaming and config.epochs is not None:
        yield ("epochs",), "`epochs` counts passes over all rows, which `data.streaming` does not know: remove it, and set `steps` alone"
    if config.data.eval_rows and config.eval_dataset is not None:
        yield ("data", "eval_rows"), "`data.eval_rows` holds rows out, and `eval_dataset` names others: remove one of them"
    if config.data.streaming and config.data.eval_rows:
        yield ("data", "eval_rows"), "`data.eval_rows` draws from all rows, which `data.streaming` does not read: name an `eval_dataset`"
    evaluates = config.eval_dataset is not None or config.data.eval_rows > 0
    if not evaluates and config.evaluation != type(config.evaluation)():
        yield (
            ("evaluation",),
            "`evaluation` needs rows that are not trained: name an `eval_dataset`, or set `data.eval_rows` to hold some of them out",
        )
    if config.evaluation.every is None and (config.evaluation.patience or config.evaluation.keep_best):
        yield ("evaluation", "every"), "`evaluation` chooses between several evaluations, and there is one: set `evaluation.every`"
    yield from mistakes_of_adapter(config, needs, name)
    if config.evaluation.samples and needs.output != "tokens":
        yield ("evaluation", "samples"), f"`evaluation.samples` are answers, and what objective {name!r} trains gives none: remove it"
    if config.evaluation.samples and config.learner.ranks > 1 and config.learner.sharding == "fsdp2":
        yield (
            ("evaluation", "samples"),
            "`evaluation.samples` are made by one rank, and `learner.sharding` fsdp2 leaves it with a part of the model: remove it, or "
            "set learner.sharding=ddp",
        )
    if config.learner.precompute_reference:
        yield from _mistakes_of_precomputing(config, needs, name)
    if needs.mixes_rows and config.batch_size < 2:
        yield ("batch_size",), f"objective {name!r} reads each prompt with another row's completion, and a step has one row: set 2 or more"
    if config.data.streaming and needs.density_ratio is not None:
        yield (
            ("objective",),
            "`objective.density_ratio` reads all rows before the first step, and `data.streaming` does not: remove one of them",
        )
    sync = config.learner.reference_sync
    if sync is not None and not needs.reference:
        yield ("learner", "reference_sync"), f"`learner.reference_sync` moves the reference, and objective {name!r} has none: remove it"
    if sync is not None and config.learner.lora is not None:
        yield (
            ("learner", "reference_sync"),
            "`learner.reference_sync` moves the reference, and with learner.lora that is the model without its adapter, which never moves: "
            "remove one of the two",
        )


def _mistakes_of_precomputing(config: RunConfig, needs: Needs, name: str) -> Iterator[Mistake]:
    key = ("learner", "precompute_reference")
    if not needs.reference:
        yield key, f"`learner.precompute_reference` scores rows under a reference, and objective {name!r} has none: remove it"
    elif needs.mixes_rows:
        yield key, f"`learner.precompute_reference` scores rows once, and objective {name!r} makes new ones of them each step: remove it"
    if config.data.streaming:
        yield (
            key,
            "`learner.precompute_reference` reads all rows before the first step, and `data.streaming` does not: remove one of them",
        )
    if config.learner.reference_sync is not None:
        yield key, "`learner.reference_sync` moves the reference that `learner.precompute_reference` scores with once: remove one of them"


def _set(config: RunConfig, keys: tuple[str, ...]) -> Iterator[str]:
    """Keys whose values are not the defaults."""
    fields: dict[str, Any] = dict(type(config).model_fields)
    for key in keys:
        if getattr(config, key) != fields[key].get_default(call_default_factory=True):
            yield key
