"""From a dataset's examples to the candidates of a step: each text a sample, each example a group, as rollouts and their groups are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.learner.samples import Candidates, Member, Sample
from agentrl.learner.signals import LABEL, REFERENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.examples import Example, Text
    from agentrl.objectives.needs import Needs

NOTHING = np.zeros(0, dtype=np.float64)


def candidates_of(examples: Sequence[Example], needs: Needs, padding: int | None = None) -> Candidates:
    """The texts of some examples as samples, for a policy whose head gives what `needs` says.

    A score is read at a text's last token that is not `padding`, as transformers' classifiers read it.
    """
    samples: list[Sample] = []
    members: list[tuple[Member, ...]] = []
    for group, example in enumerate(examples):
        found = []
        for place, sample in enumerate(_samples(example, group, needs, padding)):
            found.append(_member(example, place, len(samples) if sample is not None else -1))
            samples += [sample] if sample is not None else []
        members.append(tuple(found))
    return Candidates(
        rewards=tuple(np.array(example.rewards[:1] if example.joined else example.rewards, dtype=np.float64) for example in examples),
        members=tuple(members),
        preferences=tuple({} for _ in examples),
        sizes=tuple(map(len, members)),
        samples=tuple(samples),
        counts={
            "data/rows": float(len(examples)),
            "num_tokens": float(sum(example.num_tokens for example in examples)),
            **_written(examples),
        },
    )


def _written(examples: Sequence[Example]) -> dict[str, float]:
    """What the texts that a teacher wrote are like; nothing where it wrote none."""
    written = [one for one in examples if one.ended is not None]
    if not written:
        return {}
    return {
        "written/texts": float(len(written)),
        "written/mean_length": sum(one.num_trained for one in written) / len(written),
        "written/truncated_fraction": sum(not one.ended for one in written) / len(written),
    }


def together(first: Candidates, second: Candidates) -> Candidates:
    """The candidates of one step that come from two places."""
    places, groups = len(first.samples), len(first.rewards)
    moved = tuple(
        tuple(replace(member, place=member.place + places if member.place >= 0 else -1) for member in members) for members in second.members
    )
    return Candidates(
        rewards=first.rewards + second.rewards,
        members=first.members + moved,
        preferences=first.preferences + second.preferences,
        sizes=first.sizes + second.sizes,
        samples=first.samples + tuple(replace(sample, group=sample.group + groups) for sample in second.samples),
        counts=first.counts | second.counts,
    )


def _member(example: Example, place: int, sample: int) -> Member:
    return Member(place=sample, member=place, rival=False, truncated=False, parts=dict(example.parts), turn_rewards=NOTHING)


def _samples(example: Example, group: int, needs: Needs, padding: int | None) -> list[Sample | None]:
    known = example.reference_logprobs or (None,) * len(example.texts)
    found = [_sample(text, group, needs, reference, padding) for text, reference in zip(example.texts, known, strict=True)]
    parts = dict(example.parts)
    found = [None if one is None else replace(one, teacher=example.teacher) for one in found]
    if not example.joined:
        return [None if one is None else replace(one, parts=parts) for one in found]
    rows = [one for one in found if one is not None]
    return [_joined(rows, parts)] if rows else [None]


def _joined(rows: Sequence[Sample], parts: dict[str, float]) -> Sample:
    return replace(
        rows[0],
        rows=tuple(row for one in rows for row in one.rows),
        sources=tuple(places for one in rows for places in one.sources),
        targets=np.concatenate([one.targets for one in rows]),
        sampler_logprobs=np.concatenate([one.sampler_logprobs for one in rows]),
        turn=np.concatenate([one.turn for one in rows]),
        version_steps=np.concatenate([one.version_steps for one in rows]),
        columns={name: np.concatenate([one.columns[name] for one in rows]) for name in rows[0].columns},
        parts=parts,
    )


def _sample(text: Text, group: int, needs: Needs, reference: np.ndarray | None, padding: int | None) -> Sample | None:
    """None where nothing of it is trained. A head of outputs reads states at the tokens themselves, not at those before them."""
    columns: dict[str, np.ndarray] = dict(text.known) if reference is None else {**text.known, REFERENCE: reference}
    if needs.output == "tokens":
        trained = np.flatnonzero(text.trained)
        sources = trained - 1
    elif needs.output == "score":
        trained = sources = np.flatnonzero(text.ids != padding)[-1:] if padding in text.ids[-1:] else np.array([len(text.ids) - 1])
    else:
        assert text.labels is not None, "stepwise texts have labels"
        trained = sources = np.flatnonzero(~np.isnan(text.labels))
        columns[LABEL] = text.labels[trained]
    if not len(trained):
        return None
    return Sample(
        group=group,
        rows=(text.ids[: sources[-1] + 1],),
        sources=(sources.astype(np.int64),),
        targets=text.ids[trained].astype(np.int64),
        sampler_logprobs=np.full(len(trained), np.nan, dtype=np.float32),
        masked=False,
        turn=np.zeros(len(trained), dtype=np.int32),
        version_steps=np.zeros(len(trained), dtype=np.int32),
        columns=columns,
        alone=needs.noise > 0,
    )
