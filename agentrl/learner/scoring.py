"""What a step's tokens score before it begins: under a reference, under the learner as it is, by the critic. No gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.errors import LearnerDiverged
from agentrl.learner import ranks
from agentrl.learner.lanes import in_turn
from agentrl.learner.packing import pack
from agentrl.learner.samples import FILLER
from agentrl.learner.signals import ENTROPY, REFERENCE, START, TEACHER, VALUES, columns_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.learner.lanes import Lanes
    from agentrl.learner.models import Models
    from agentrl.learner.packing import Pack
    from agentrl.learner.samples import Sample


SAID = {
    REFERENCE: "the reference's log-probs",
    TEACHER: "the teacher's log-probs",
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


def score(
    samples: Sequence[Sample],
    batches: Sequence[Sequence[int]],
    models: Models,
    accelerator: Accelerator,
    *,
    ragged: bool,
    lanes: Lanes | None = None,
    wanted: Sequence[str] | None = None,
) -> list[dict[str, np.ndarray]]:
    """[trained] columns of each sample, on every rank; a collective.

    Args:
        samples: of the whole step.
        batches: this rank's micro-batches, as places in `samples`; empty ones keep it in step with the others.
        models: their `needs` say which columns.
        accelerator: the ranks.
        ragged: the attention kernel takes segments of any lengths.
        lanes: threads that take turns on the micro-batches, where that helps.
        wanted: columns; by default those of the models' needs that the samples do not bring with them.

    Raises `LearnerDiverged` where one of them is not finite.
    """
    columns_wanted = wanted or [name for name in columns_of(models.needs) if not all(name in sample.columns for sample in samples)]
    if not columns_wanted:
        return [dict(sample.columns) for sample in samples]
    scored: list[Scored] = []

    @torch.no_grad()  # which holds for one thread alone
    def work(index: int) -> list[Scored]:
        batch = batches[index]
        rows = [samples[place] for place in batch]
        packed = pack(rows or [FILLER], accelerator.device, ragged=ragged)
        columns = {name: values.cpu().numpy() for name, values in _score(rows, packed, models, columns_wanted).items()}
        ends = np.cumsum([sample.num_trained for sample in rows])[:-1]
        split = {name: np.split(values, ends) for name, values in columns.items()}
        return [Scored(place=place, columns={name: split[name][at] for name in split}) for at, place in enumerate(batch)]

    alone = models.policy.adapted  # the reference switches the adapter off, for all threads
    in_turn(None if alone else lanes, len(batches), work, scored.extend)
    models.reshard()
    everywhere = ranks.gather_messages(accelerator, tuple(scored), tuple[Scored, ...])
    by_place = {one.place: one.columns for part in everywhere for one in part}
    _check_finite(by_place.values())
    return [{**sample.columns, **by_place[place]} for place, sample in enumerate(samples)]


def _check_finite(found: Iterable[Mapping[str, np.ndarray]]) -> None:
    bad = sorted({name for columns in found for name, values in columns.items() if not np.isfinite(values).all()})
    if bad:
        what = " and ".join(SAID[name] for name in bad)
        raise LearnerDiverged(
            f"{what} are infinite or NaN before the step began: weights have grown too large for the forward pass. "
            "Nothing of this step was published or saved; go on from the last checkpoint with a lower learner.lr"
        )


def _score(samples: Sequence[Sample], packed: Pack, models: Models, columns: Sequence[str]) -> dict[str, torch.Tensor]:
    found = {REFERENCE: models.reference_logprobs(packed)} if REFERENCE in columns else {}
    if TEACHER in columns:
        assert models.teachers is not None, "the objective asks for a teacher"
        found[TEACHER] = models.teachers.logprobs(samples, packed)
    if START in columns or (VALUES in columns and models.critic is None):
        scores = models.policy(packed)
        if START in columns:
            found |= {START: scores.logprobs, ENTROPY: scores.entropy}
        if VALUES in columns and models.critic is None:
            found[VALUES] = scores.values
    if VALUES in columns and models.critic is not None:
        found[VALUES] = models.critic(packed)
    return found
