"""A teacher of another vocabulary beside the student: what it reads of each sample, and how the two are held against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.errors import ConfigError
from agentrl.learner.alignment import Alignment, Vocabulary, matched
from agentrl.learner.uld import Matched, Side, compare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.learner.packing import Pack
    from agentrl.learner.projection import Projection
    from agentrl.learner.samples import Candidates, Sample
    from agentrl.objectives.needs import Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What such a teacher says of a micro-batch."""

    places: torch.Tensor
    """[own tokens] int64: the student's trained positions that are part of a piece."""
    targets: torch.Tensor
    """[own tokens] int64."""
    groups: torch.Tensor
    """[own tokens] int64, ascending from 0: the piece that each is part of."""
    starts: torch.Tensor
    """[pieces] int64: the first of them of each piece."""
    other: Side
    how: Words
    matched: Matched | None


def held_against(student: Projection, foreign: Foreign) -> torch.Tensor:
    """[positions] the distance of each piece at its first token, 0 elsewhere; in float32 or better."""
    own = Side(projection=student, places=foreign.places, targets=foreign.targets, groups=foreign.groups)
    found = compare(own, foreign.other, len(foreign.starts), foreign.how, foreign.matched)
    whole = student.hidden.new_zeros(len(student.hidden), dtype=torch.promote_types(student.hidden.dtype, torch.float32))
    return whole.index_add(0, foreign.starts, found.loss.to(whole.dtype))


class ForeignTeacher:
    """How a teacher's vocabulary and the student's go together.

    Args:
        own: of the student.
        other: of the teacher.
        how: what is compared.
    """

    def __init__(self, own: Vocabulary, other: Vocabulary, how: Words) -> None:
        self._alignment = Alignment(own, other, skips_ends=how.skips_ends)
        self._how = how
        self._matched: Matched | None = None
        if how.hybrid:
            of_own, of_other = matched(own, other)
            if not len(of_own):
                raise ConfigError(f"the vocabularies of {own.name} and {other.name} have no word in common: set objective.hybrid=false")
            self._matched = Matched(own=torch.from_numpy(of_own), other=torch.from_numpy(of_other))

    @classmethod
    def load(cls, how: Words, policy: str, teacher: str) -> ForeignTeacher:
        """Of two models' folders; raises `ConfigError` for a tokenizer that does not load, or whose tokens are no bytes."""
        from transformers import AutoTokenizer

        found = []
        for folder, called in ((policy, f"the policy {policy!r}"), (teacher, f"the teacher {teacher!r}")):
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder)
            except Exception as error:  # somebody else's files: each kind of tokenizer has its own errors
                raise ConfigError(f"{called} has no tokenizer that loads: {type(error).__name__}: {error}") from error
            found.append(Vocabulary(tokenizer, called))
        return cls(found[0], found[1], how)

    def aligned(self, found: Candidates) -> Candidates:
        """The samples of a step with what the teacher reads of each, and how many of their tokens are compared."""
        samples = tuple(self._alignment.aligned(sample) for sample in found.samples)
        trained = sum(sample.num_trained for sample in samples)
        compared = sum(int((sample.view.own_groups >= 0).sum()) for sample in samples if sample.view is not None)
        return replace(found, samples=samples, counts={**found.counts, "gold/aligned_share": compared / trained if trained else 0.0})

    def lesson(self, samples: Sequence[Sample], said: Projection, packed: Pack) -> Foreign:
        """What the teacher says of the samples of a micro-batch.

        Args:
            samples: in the order in which they were packed.
            said: the teacher's hidden states before the targets of those samples' views, in the same order.
            packed: the student's pack, on whose device everything goes.
        """
        own_places, own_groups, places, groups = [], [], [], []
        at = other_at = number = 0
        for sample in samples:
            if sample.view is not None:
                view = sample.view
                own_places.append(at + np.flatnonzero(view.own_groups >= 0))
                own_groups.append(number + view.own_groups[view.own_groups >= 0])
                places.append(other_at + np.flatnonzero(view.groups >= 0))
                groups.append(number + view.groups[view.groups >= 0])
                number += int(view.own_groups.max(initial=-1)) + 1
                other_at += len(view.targets)
            at += sample.num_trained
        own, owner = _joined(own_places), _joined(own_groups)
        _, first, owner = np.unique(owner, return_index=True, return_inverse=True)
        _, theirs = np.unique(_joined(groups), return_inverse=True)
        targets = np.concatenate([sample.view.targets for sample in samples if sample.view is not None] or [own])
        device = packed.ids.device
        mine = torch.from_numpy(own).to(device)
        there = torch.from_numpy(_joined(places)).to(device)
        return Foreign(
            places=mine,
            targets=packed.targets[mine],
            groups=torch.from_numpy(owner.astype(np.int64)).to(device),
            starts=mine[torch.from_numpy(first.astype(np.int64)).to(device)],
            other=Side(
                projection=said,
                places=there,
                targets=torch.from_numpy(targets.astype(np.int64)).to(device)[there],
                groups=torch.from_numpy(theirs.astype(np.int64)).to(device),
            ),
            how=self._how,
            matched=None if self._matched is None else Matched(own=self._matched.own.to(device), other=self._matched.other.to(device)),
        )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
