"""Whether a run can give its objective what that needs, said before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.adapter_needs import mistakes_of_adapter
from agentrl.engines.reference_share import check_reference_share
from agentrl.errors import ConfigError
from agentrl.replay import mistakes_of_replay
from agentrl.warm_start import mistakes_of_warm_start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.config import RunConfig
    from agentrl.objectives import Needs


def mistakes_of_needs(config: RunConfig, needs: Needs, name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong, each with the key that would have to change.

    Args:
        config: the run file.
        needs: of the objective under its options.
        name: of the objective.
    """
    least = max(needs.group_size, 2 if needs.signal else 1)
    if config.group_size < least:
        yield ("group_size",), f"objective {name!r} compares rollouts of one task: set group_size >= {least}, got {config.group_size}"
    elif (needs.rival is not None or needs.judge) and config.group_size % 2:
        halves = "half of each group is sampled by a rival" if needs.rival is not None else "a judge compares rollouts two by two"
        yield ("group_size",), f"with objective {name!r} {halves}: set an even group_size, got {config.group_size}"
    if needs.rival is not None:
        try:
            check_reference_share(config, needs.rival)
        except ConfigError as error:
            key = ": objective.mixture=1" if needs.rival < 1 and "mixture" in config.objective else ""
            yield ("objective",), f"objective {name!r}: {error}{key}"
    rollouts = config.group_size * config.groups_per_step
    if needs.minibatches > rollouts:
        yield (
            ("objective", "minibatches"),
            f"`objective.minibatches` got {needs.minibatches}; a step has {rollouts} rollouts (group_size x groups_per_step); set fewer",
        )
    if config.learner.reference_sync is not None and not needs.reference:
        yield (
            ("learner", "reference_sync"),
            f"`learner.reference_sync` moves the reference, and objective {name!r} has none with these options: set objective.beta, or "
            "remove it",
        )
    if config.learner.reference_sync is not None and config.learner.lora is not None:
        yield (
            ("learner", "reference_sync"),
            "`learner.reference_sync` moves the reference, and with learner.lora that is the model without its adapter, which never moves: "
            "remove one of the two",
        )
    if needs.judge and config.dataset is not None and config.judge is None:
        yield ("objective", "preferences"), "`objective.preferences` is judge, and `dataset` has none: set `judge: file.py:function`"
    if config.judge is not None and not needs.judge:
        yield (
            ("judge",),
            f"`judge` compares rollouts, and objective {name!r} asks for no comparison; set objective.preferences=judge, or remove it",
        )
    yield from mistakes_of_adapter(config, needs, name)
    yield from mistakes_of_replay(config, needs, name)
    yield from mistakes_of_warm_start(config, needs, name)


def check_needs(config: RunConfig, needs: Needs, name: str) -> None:
    """Raise `ConfigError` with everything that is wrong."""
    mistakes = [text for _, text in mistakes_of_needs(config, needs, name)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
