"""The dataset's own texts in a run that also samples: how many each step trains, and which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agentrl.written_texts import trained_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config import RunConfig
    from agentrl.examples import DataKind, Example
    from agentrl.objectives import Needs

HELD_OUT = 20
"""The environment behind `dataset` holds every so-many-th row out where it has as many: they are not trained here either."""
STREAM = int.from_bytes(b"further")
"""Keeps the order of these rows apart from that of the tasks."""


def further_examples(
    config: RunConfig,
    kind: DataKind | None,
    needs: Needs,
    tokenizer: PreTrainedTokenizerBase,
    model_dir: str,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Callable[[int], Sequence[Example]] | None:
    """What gives the examples of each step, by its number; None where the step is the policy's own texts alone.

    Args:
        config: the run file.
        kind: what the objective learns from, where it learns from a dataset.
        needs: of the objective, with the share of its own texts.
        tokenizer: of the model.
        model_dir: of the model, which says how long a text may be.
        say: takes what a person should know.

    Raises `ConfigError` where a row is wrong, naming file, row and field.
    """
    if kind is None or not 0 < needs.own_share < 1:
        return None
    from agentrl.data.limits import limits_of
    from agentrl.data.prepare import prepare

    rows = prepare(config, trained_kind(kind, needs), tokenizer, "train", say=say, **limits_of(model_dir))
    trained = [row for row in range(len(rows)) if len(rows) < HELD_OUT or row % HELD_OUT]
    count = examples_of_a_step(config.groups_per_step * config.group_size, needs.own_share)

    def taken(step: int) -> list[Example]:
        return [rows[trained[at]] for at in places(step, count, len(trained), config.seed)]

    return taken


def examples_of_a_step(own: int, share: float) -> int:
    """Examples beside `own` sampled texts, at least one, so that these are about this share of all."""
    return max(1, round(own * (1 - share) / share))


def places(step: int, count: int, length: int, seed: int) -> list[int]:
    """Which examples a step takes: each once an epoch, in an order of the seed's; a pure function of the step."""
    found = []
    for place in range(step * count, (step + 1) * count):
        epoch, at = divmod(place, length)
        found.append((epoch, at))
    orders = {epoch: np.random.default_rng([seed, epoch, STREAM]).permutation(length) for epoch in {epoch for epoch, _ in found}}
    return [int(orders[epoch][at]) for epoch, at in found]
