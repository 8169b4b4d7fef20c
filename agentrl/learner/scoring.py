"""What a step's tokens score before it begins: under a reference, under the learner as it is, by the critic. No gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.learner import ranks
from agentrl.learner.packing import pack
from agentrl.learner.samples import FILLER
from agentrl.learner.signals import ENTROPY, REFERENCE, START, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.learner.models import Models
    from agentrl.learner.packing import Pack
    from agentrl.learner.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One sample's columns, as ranks send them to each other."""

    place: int
    columns: dict[str, np.ndarray]


@torch.no_grad()
def score(
    samples: Sequence[Sample], batches: Sequence[Sequence[int]], models: Models, accelerator: Accelerator, *, ragged: bool
) -> list[dict[str, np.ndarray]]:
    """[trained] columns of each sample, on every rank; a collective.

    Args:
        samples: of the whole step.
        batches: this rank's micro-batches, as places in `samples`; empty ones keep it in step with the others.
        models: `needs` of theirs says which columns: `reference`; `start` and `entropy` where the step's own policy is asked for; `values`.
        accelerator: the ranks.
        ragged: the attention kernel takes segments of any lengths.
    """
    if not columns_of(models):
        return [{} for _ in samples]
    scored = []
    for batch in batches:
        packed = pack([samples[place] for place in batch] or [FILLER], accelerator.device, ragged=ragged)
        columns = {name: values.cpu().numpy() for name, values in _score(packed, models).items()}
        ends = np.cumsum([samples[place].num_trained for place in batch])[:-1]
        split = {name: np.split(values, ends) for name, values in columns.items()}
        scored += [Scored(place=place, columns={name: split[name][at] for name in split}) for at, place in enumerate(batch)]
    everywhere = ranks.gather_messages(accelerator, tuple(scored), tuple[Scored, ...])
    by_place = {one.place: one.columns for part in everywhere for one in part}
    return [by_place[place] for place in range(len(samples))]


def columns_of(models: Models) -> tuple[str, ...]:
    """The columns that the objective needs."""
    needs = models.needs
    found = [REFERENCE] if needs.reference else []
    if starts(models):
        found += [START, ENTROPY]
    return (*found, *([VALUES] if needs.critic is not None else []))


def starts(models: Models) -> bool:
    """Whether the learner's own log-probs at the start are needed: where they are those of the one forward pass, they are not scored."""
    needs = models.needs
    return needs.start or needs.passes * needs.minibatches > 1


def _score(packed: Pack, models: Models) -> dict[str, torch.Tensor]:
    columns = columns_of(models)
    found = {REFERENCE: models.reference_logprobs(packed)} if REFERENCE in columns else {}
    if START in columns or (VALUES in columns and models.critic is None):
        scores = models.policy(packed)
        if START in columns:
            found |= {START: scores.logprobs, ENTROPY: scores.entropy}
        if VALUES in columns and models.critic is None:
            found[VALUES] = scores.values
    if VALUES in columns and models.critic is not None:
        found[VALUES] = models.critic(packed)
    return found
