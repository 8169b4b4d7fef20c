"""What an objective makes of a step's rewards, before the first backward pass: advantages, returns, pairs, chosen tokens.

Everything here covers the whole step and is the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.objectives.signals import Credit, GroupSignals, MemberSignals, StepColumns

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agentrl.learner.samples import Candidates, Member
    from agentrl.objectives.base import Objective, ObjectiveConfig
    from agentrl.objectives.needs import Needs

REFERENCE, START, ENTROPY, VALUES, RETURNS, LABEL = "reference", "start", "entropy", "values", "returns", "label"
TEACHER = "teacher"
"""Names of a sample's columns, [trained] each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """A sample's part of the signal."""

    place: int
    """Of the sample in the step."""
    advantages: np.ndarray
    """[trained] float64."""
    columns: Mapping[str, np.ndarray]
    """[trained] each: what was scored before the step, `returns`, and what `select` chose."""
    rival: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the signal beside the advantages."""

    @property
    def is_zero(self) -> bool:
        """Whether its advantage is exactly 0 everywhere."""
        return not self.advantages.any()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """The samples that the step's loss counts."""

    credited: tuple[Credited, ...]
    """In the order of the step."""
    units: tuple[tuple[int, ...], ...]
    """Places in `credited` that must be in one micro-batch: (chosen, rejected) pairs, or single ones."""
    counts: dict[str, float] = field(default_factory=dict)


def signals_of(
    found: Candidates,
    scores: Sequence[Mapping[str, np.ndarray]],
    objective: Objective,
    options: ObjectiveConfig,
    needs: Needs,
    *,
    seed: tuple[int, ...],
) -> Signals:
    """Advantages over the whole step, then the tokens that `select` chooses.

    Args:
        found: the scorable rollouts.
        scores: for each sample, [trained] columns that were scored before the step: `reference`, `start`, `entropy`, `values`.
        objective: says the advantages and the selection.
        options: the objective's own, as they are in force.
        needs: what the objective asks for.
        seed: of this step, for a selection that draws.
    """
    known = frozenset(scores[0] if scores else columns_of(needs))
    groups = [_group_signals(found, index, scores, known) for index in range(len(found.rewards))]
    credited: list[Credited] = []
    pairs: list[tuple[int, ...]] = []
    left_out = 0
    for members, given in zip(found.members, objective.advantages(groups, options), strict=True):
        credit = given if isinstance(given, Credit) else Credit(advantages=given)
        counted, whole = _counted(found, members, credit, needs)
        left_out += 0 if credit.trained is None else len(members) - int(np.count_nonzero(credit.trained))
        at = {index: len(credited) + place for place, index in enumerate(counted)}
        credited += [_credited(found, members[index], credit, index, scores) for index in counted]
        pairs += [tuple(at[place] for place in pair) for pair in whole]
    if needs.start and credited:
        credited = _selected(credited, found, objective, options, seed)
    units: list[tuple[int, ...]] = [*pairs] if needs.pairs else [(index,) for index in range(len(credited))]
    zero = sum(one.is_zero for one in credited) if not needs.pairs and objective.data is None else 0
    counts = {"learner/zero_advantage": float(zero)}
    if found.rewards and objective.data is None:
        counts["learner/reward_mean"] = float(np.mean(np.concatenate(objective.rewards(groups, options))))
    if needs.texts:
        counts["mask/left_out"] = float(left_out)
    if needs.pairs:
        counts |= {"learner/pairs": float(len(pairs)), "learner/unpaired": float(len(found.samples) - sum(map(len, pairs)))}
    return Signals(credited=tuple(credited), units=tuple(units), counts=counts)


def columns_of(needs: Needs) -> tuple[str, ...]:
    """What is scored of each token before the step begins.

    The policy's own log-probs are not where the step is one optimizer step: they are those of its forward pass.
    """
    found = [REFERENCE] if needs.reference else []
    if needs.teacher is not None and needs.teacher.logprobs:
        found.append(TEACHER)
    if needs.start or (needs.reads_start and needs.passes * needs.minibatches > 1):
        found += [START, ENTROPY]
    return (*found, *([VALUES] if needs.critic is not None else []))


def _counted(found: Candidates, members: Sequence[Member], credit: Credit, needs: Needs) -> tuple[list[int], list[tuple[int, ...]]]:
    """Places of the members whose tokens the loss counts, and the pairs that both of theirs are left of."""
    may = {
        index
        for index, member in enumerate(members)
        if member.place >= 0 and not found.samples[member.place].masked and (credit.trained is None or credit.trained[index])
    }
    whole = [pair for pair in credit.pairs if may.issuperset(pair)]
    if needs.pairs:
        may = {index for pair in whole for index in pair}
    return sorted(may), whole


def _group_signals(found: Candidates, index: int, scores: Sequence[Mapping[str, np.ndarray]], known: Collection[str]) -> GroupSignals:
    members = [_member_signals(found, member, scores, known) for member in found.members[index]]
    kl = None
    if all(member.reference_logprobs is not None for member in members):
        kl = np.array([np.sum(one.sampler_logprobs - one.reference_logprobs, dtype=np.float64) for one in members])
    names = sorted({name for member in found.members[index] for name in member.parts})
    return GroupSignals(
        rewards=found.rewards[index],
        reference_kl=kl,
        parts={name: np.array([member.parts.get(name, np.nan) for member in found.members[index]]) for name in names},
        members=tuple(members),
        preferences=found.preferences[index],
        size=found.sizes[index],
    )


def _member_signals(found: Candidates, member: Member, scores: Sequence[Mapping[str, np.ndarray]], known: Collection[str]) -> MemberSignals:
    empty = np.zeros(0, dtype=np.float32)
    sample = found.samples[member.place] if member.place >= 0 else None
    columns = scores[member.place] if sample is not None else {}

    def column(name: str) -> np.ndarray | None:
        return (columns.get(name, empty)) if name in known else None

    return MemberSignals(
        member=member.member,
        rival=member.rival,
        truncated=member.truncated,
        turn_rewards=member.turn_rewards,
        text=member.text,
        turn=sample.turn if sample is not None else np.zeros(0, dtype=np.int32),
        sampler_logprobs=sample.sampler_logprobs if sample is not None else empty,
        start_logprobs=column(START),
        start_entropy=column(ENTROPY),
        reference_logprobs=column(REFERENCE),
        teacher_logprobs=column(TEACHER),
        values=column(VALUES),
    )


def _credited(found: Candidates, member: Member, credit: Credit, index: int, scores: Sequence[Mapping[str, np.ndarray]]) -> Credited:
    sample = found.samples[member.place]
    given = credit.advantages[index]
    advantages = np.full(sample.num_trained, float(given)) if np.ndim(given) == 0 else np.asarray(given, dtype=np.float64)
    columns = {**sample.columns, **scores[member.place]}
    if credit.returns is not None:
        columns[RETURNS] = credit.returns[index]
    parts = {name: float(values[index]) for name, values in credit.parts.items()}
    return Credited(place=member.place, advantages=advantages, columns=columns, rival=member.rival, parts=parts)


def _selected(
    credited: Sequence[Credited], found: Candidates, objective: Objective, options: ObjectiveConfig, seed: tuple[int, ...]
) -> list[Credited]:
    lengths = [len(one.advantages) for one in credited]
    columns = StepColumns(
        advantages=np.concatenate([one.advantages for one in credited]),
        sampler_logprobs=np.concatenate([found.samples[one.place].sampler_logprobs for one in credited]).astype(np.float64),
        start_logprobs=np.concatenate([one.columns[START] for one in credited]).astype(np.float64),
        start_entropy=np.concatenate([one.columns[ENTROPY] for one in credited]).astype(np.float64),
        rollout=np.repeat(np.arange(len(credited)), lengths),
        seed=seed,
    )
    chosen = objective.select(columns, options)
    ends = np.cumsum(lengths)[:-1]
    parts = {name: np.split(values, ends) for name, values in chosen.items()}
    own = [{name: values[index] for name, values in parts.items()} for index in range(len(credited))]
    return [replace(one, columns={**one.columns, **more}) for one, more in zip(credited, own, strict=True)]
