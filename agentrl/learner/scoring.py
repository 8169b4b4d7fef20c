"""What a step's tokens score before it begins: under a reference, under the learner as it is, by the critic. No gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.errors import LearnerDiverged
from agentrl.learner import ranks
from agentrl.learner.packing import pack
from agentrl.learner.samples import FILLER
from agentrl.learner.signals import ENTROPY, REFERENCE, START, VALUES, columns_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.learner.models import Models
    from agentrl.learner.packing import Pack
    from agentrl.learner.samples import Sample


SAID = {
    REFERENCE: "the reference's log-probs",
    START: "the policy's log-probs",
    ENTROPY: "the policy's entropies",
    VALUES: "the critic's values",
}
"""The columns as a message names them."""


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
        models: their `needs` say which columns.
        accelerator: the ranks.
        ragged: the attention kernel takes segments of any lengths.

    Raises `LearnerDiverged` where one of them is not finite.
    """
    if not columns_of(models.needs):
        return [{} for _ in samples]
    scored = []
    for batch in batches:
        packed = pack([samples[place] for place in batch] or [FILLER], accelerator.device, ragged=ragged)
        columns = {name: values.cpu().numpy() for name, values in _score(packed, models).items()}
        ends = np.cumsum([samples[place].num_trained for place in batch])[:-1]
        split = {name: np.split(values, ends) for name, values in columns.items()}
        scored += [Scored(place=place, columns={name: split[name][at] for name in split}) for at, place in enumerate(batch)]
    for model in (models.policy, models.reference, models.critic):
        ranks.reshard(model)
    everywhere = ranks.gather_messages(accelerator, tuple(scored), tuple[Scored, ...])
    by_place = {one.place: one.columns for part in everywhere for one in part}
    _check_finite(by_place.values())
    return [by_place[place] for place in range(len(samples))]


def _check_finite(found: Iterable[Mapping[str, np.ndarray]]) -> None:
    bad = sorted({name for columns in found for name, values in columns.items() if not np.isfinite(values).all()})
    if bad:
        what = " and ".join(SAID[name] for name in bad)
        raise LearnerDiverged(
            f"{what} are infinite or NaN before the step began: weights have grown too large for the forward pass. "
            "Nothing of this step was published or saved; go on from the last checkpoint with a lower learner.lr"
        )


def _score(packed: Pack, models: Models) -> dict[str, torch.Tensor]:
    columns = columns_of(models.needs)
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
