"""From the groups of a step to samples: the scorable rollouts as rows of tokens, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import ConfigError
from agentrl.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.config import RunConfig
    from agentrl.objectives.needs import Needs
    from agentrl.records import Group, Rollout


TAUGHT = "taught"
"""Name of the column that is 1 where a teacher that sees more than the student had something to see, and 0 where it had not."""


def _no_ints() -> np.ndarray:
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A sample as its teacher reads it: behind another prompt, or in another vocabulary."""

    rows: tuple[np.ndarray, ...]
    """[length] int32 each: the inputs."""
    sources: tuple[np.ndarray, ...]
    """[trained in the row] int64 each: the place in its row of the token before one that the teacher is asked about."""
    targets: np.ndarray
    """[trained] int64: those tokens, row after row; the sample's own, or of the teacher's vocabulary."""
    own_groups: np.ndarray = field(default_factory=_no_ints)
    """[trained of the sample] int32: in another vocabulary, the number of the piece of text that a token is part of; -1 for no piece."""
    groups: np.ndarray = field(default_factory=_no_ints)
    """[trained of the view] int32: the same of the teacher's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout as the learner computes it: next-token prediction over its rows."""

    group: int
    """Place of its group in the step; rollouts of one group may share the start of their rows."""
    rows: tuple[np.ndarray, ...]
    """[length] int32 each: the inputs, up to the token before the last trained one."""
    sources: tuple[np.ndarray, ...]
    """[trained in the row] int64 each: the place in its row of the token before a trained one."""
    targets: np.ndarray
    """[trained] int64: the trained tokens, row after row."""
    sampler_logprobs: np.ndarray
    """[trained] float32 nats."""
    masked: bool
    """Not trained by the user's wish, but part of its group's baseline."""
    turn: np.ndarray = field(default_factory=_no_ints)
    """[trained] int32: which of `Rollout.own_turns` sampled each token."""
    version_steps: np.ndarray = field(default_factory=_no_ints)
    """[trained] int32: step of the weights that sampled each token."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[trained] each: what was known of the tokens before the step."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Numbers of a dataset's row."""
    alone: bool = False
    """Its rows share no token with another row, whatever they start with: each has noise of its own."""
    view: View | None = None
    """What the teacher reads instead; None where it reads the same."""
    teacher: str | None = None
    """Name of the one teacher that it learns from, where its row names one."""

    @property
    def num_trained(self) -> int:
        """Tokens that a loss could train."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """Inputs, before shared starts are merged."""
        return sum(map(len, self.rows))


FILLER = Sample(
    group=0,
    rows=(np.zeros(1, dtype=np.int32),),
    sources=(np.zeros(1, dtype=np.int64),),
    targets=np.zeros(1, dtype=np.int64),
    sampler_logprobs=np.zeros(1, dtype=np.float32),
    masked=False,
)
"""The least that a forward pass takes, for a rank that has nothing left while others go on."""


def viewed(sample: Sample) -> Sample:
    """The sample that a teacher computes: the same, or its view."""
    view = sample.view
    if view is None:
        return sample
    return replace(
        sample, rows=view.rows, sources=view.sources, targets=view.targets, sampler_logprobs=np.zeros(len(view.targets), dtype=np.float32)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A scorable rollout of a group, as its signal sees it beside its sample."""

    place: int
    """Of its sample; -1 where it sampled nothing."""
    member: int
    """Index within its group."""
    rival: bool
    truncated: bool
    parts: dict[str, float]
    """Named parts of its score."""
    turn_rewards: np.ndarray
    """[own turns] float64."""
    text: str = ""
    """What it says, where the objective asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The scorable rollouts of a step, before advantages."""

    rewards: tuple[np.ndarray, ...]
    """[members] float64 a group."""
    members: tuple[tuple[Member, ...], ...]
    preferences: tuple[dict[tuple[int, int], float], ...]
    """What the judge said of each group, by places of two members."""
    sizes: tuple[int, ...]
    """Members of each group as it was played."""
    samples: tuple[Sample, ...]
    counts: dict[str, float]


def candidates(groups: Sequence[Group], config: RunConfig, needs: Needs) -> Candidates:
    """Take the scorable rollouts of groups that are large enough to have a signal.

    Raises `ConfigError` where the sampler drew from another distribution than the learner scores.
    """
    rewards: list[np.ndarray] = []
    members: list[tuple[Member, ...]] = []
    preferences: list[dict[tuple[int, int], float]] = []
    sizes: list[int] = []
    samples: list[Sample] = []
    counts = {"mask/unscorable": 0.0, "mask/small_group": 0.0, "mask/truncated": 0.0, "mask/not_finite": 0.0}
    for group in groups:
        scorable = [(rollout, score) for rollout, score in zip(group.rollouts, group.scores, strict=True) if score is not None]
        counts["mask/unscorable"] += len(group.rollouts) - len(scorable)
        finite = [(rollout, score) for rollout, score in scorable if _is_finite(rollout)]
        counts["mask/not_finite"] += len(scorable) - len(finite)
        if len(finite) < needs.group_size:
            counts["mask/small_group"] += len(finite)
            continue
        found = []
        teacher = config.teacher_of(group.task.row.get("teacher"), f"task {group.task.id}")
        for rollout, _ in finite:
            masked = config.learner.mask_truncated and rollout.ending == "truncated"
            counts["mask/truncated"] += masked
            sample = _sample(rollout, len(rewards), masked=masked, teacher=teacher)
            if sample is not None and needs.teacher is not None and needs.teacher.prompt is not None:
                sample = replace(sample, columns={**sample.columns, TAUGHT: np.full(sample.num_trained, float(sample.view is not None))})
            member = _member(rollout, len(samples) if sample else -1, needs, len(group.rollouts))
            _check_contracts(rollout, config.sampling.temperature, (needs.rival or 0.0) if member.rival else 0.0)
            found.append(member)
            samples += [sample] if sample else []
        rewards.append(np.array([score for _, score in finite], dtype=np.float64))
        members.append(tuple(found))
        sizes.append(len(group.rollouts))
        preferences.append(_verdicts(group, found))
    return Candidates(
        rewards=tuple(rewards),
        members=tuple(members),
        preferences=tuple(preferences),
        sizes=tuple(sizes),
        samples=tuple(samples),
        counts=counts,
    )


def _is_finite(rollout: Rollout) -> bool:
    """Whether every sampled token has a log-prob that a ratio can be taken of: -inf is a token that could not have been drawn."""
    return all(np.isfinite(turn.span.logprobs[turn.span.sampled]).all() for turn in rollout.own_turns)


def _member(rollout: Rollout, place: int, needs: Needs, size: int) -> Member:
    return Member(
        place=place,
        member=rollout.member,
        rival=needs.rival is not None and rollout.member >= size // 2,
        truncated=rollout.ending == "truncated",
        parts=dict(rollout.score.parts),
        turn_rewards=np.array(rollout.own_rewards, dtype=np.float64),
        text="\n".join(str(one.get("content") or "") for one in rollout.messages if one["role"] == "assistant") if needs.texts else "",
    )


def _verdicts(group: Group, members: Sequence[Member]) -> dict[tuple[int, int], float]:
    places = {member.member: place for place, member in enumerate(members)}
    half = len(group.rollouts) // 2
    return {
        (places[first], places[first + half]): chance
        for first, chance in enumerate(group.preferences)
        if chance is not None and first in places and first + half in places
    }


def _check_contracts(rollout: Rollout, temperature: float, share: float) -> None:
    """Raise where the rollout was sampled otherwise than at this temperature, with this share of the reference."""
    for turn in rollout.own_turns:
        contract = turn.contract
        if contract.truncated or contract.temperature != temperature or contract.reference_share != share:
            raise ConfigError(
                f"task {rollout.task.id}, member {rollout.member}, was sampled at temperature={contract.temperature}, "
                f"top_p={contract.top_p}, top_k={contract.top_k}, min_p={contract.min_p}, reference_share={contract.reference_share}, but "
                f"the learner scores the whole distribution at temperature={temperature}, and the objective has this member sampled at "
                f"reference_share={share}; sample as the run file says"
            )


def _sample(rollout: Rollout, group: int, *, masked: bool, teacher: str | None = None) -> Sample | None:
    """None where nothing was sampled."""
    rows, sources, targets, logprobs, turns, versions = [], [], [], [], [], []
    columns: dict[str, list[np.ndarray]] = {}
    seen_rows, seen_sources = [], []
    own = np.cumsum([turn.trained for turn in rollout.turns], dtype=np.int32) - 1
    for row in rows_of(rollout):
        trained = np.flatnonzero(row.trained)
        if not len(trained):
            continue
        if trained[0] == 0:
            raise ValueError(f"rollout {rollout.member} of task {rollout.task.id} samples its first token; a row must begin with a prompt")
        rows.append(row.ids[: trained[-1]])
        sources.append(trained - 1)
        targets.append(row.ids[trained].astype(np.int64))
        logprobs.append(row.sampler_logprobs[trained])
        turns.append(own[row.turn[trained]])
        versions.append(row.version_steps[trained])
        for name, column in row.columns.items():
            columns.setdefault(name, []).append(column[trained])
        if rollout.teacher_prompt is not None:
            prompt = rollout.teacher_prompt.astype(np.int32)
            seen_rows.append(np.concatenate([prompt, row.ids[row.prompt_length : trained[-1]]]))
            seen_sources.append(trained - 1 + len(prompt) - row.prompt_length)
    if not rows:
        return None
    view = View(rows=tuple(seen_rows), sources=tuple(seen_sources), targets=np.concatenate(targets)) if seen_rows else None
    return Sample(
        group=group,
        rows=tuple(rows),
        sources=tuple(sources),
        targets=np.concatenate(targets),
        sampler_logprobs=np.concatenate(logprobs),
        masked=masked,
        teacher=teacher,
        turn=np.concatenate(turns),
        version_steps=np.concatenate(versions),
        columns={name: np.concatenate(parts) for name, parts in columns.items() if len(parts) == len(rows)},
        view=view,
    )
