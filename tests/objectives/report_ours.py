"""agentrl's loss of made-up rollouts: the learner's own signals, weights and token batches, without a model in front of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentrl.learner.batch import Part, parts_of, token_batch
from agentrl.learner.loss import weighted
from agentrl.learner.model import Scores as LearnerScores
from agentrl.learner.samples import Candidates, Member, Sample
from agentrl.learner.signals import ENTROPY, REFERENCE, START, TEACHER, VALUES, Signals, signals_of
from agentrl.objectives import Objective, ObjectiveConfig, get, validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.objectives import TokenBatch

MAX_TOKENS = 4
"""Divisor of the `constant` normalization, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """What is known of one rollout; columns are [tokens], log-probs in nats."""

    now: np.ndarray
    sampler: np.ndarray
    reward: float = 0.0
    start: np.ndarray | None = None
    """None: the step has one optimizer step, and the learner's start is the policy now."""
    reference: np.ndarray | None = None
    entropy: np.ndarray | None = None
    """Of the policy now, in nats; also what `select` sees."""
    values: np.ndarray | None = None
    """The critic's now, and `start_values` those that the step began with."""
    start_values: np.ndarray | None = None
    turn: np.ndarray | None = None
    turn_rewards: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    rival: bool = False
    staleness: int = 0
    teacher: np.ndarray | None = None
    """The teacher's log-probs, and `divergence` between its distributions and the policy's now."""
    divergence: np.ndarray | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further columns of the forward pass by their names, without a gradient: collision, correct, mean_logits."""

    def __len__(self) -> int:
        return len(self.now)


Step = list[list[Play]]
"""The groups of a step. Members of the first half of a group come before those of the second."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that the loss of a step needs beside the policy's scores."""

    objective: Objective
    config: ObjectiveConfig
    samples: tuple[Sample, ...]
    signals: Signals
    part: Part
    more: tuple[dict[str, torch.Tensor], ...]
    """Columns of each sample's forward pass that have no gradient."""

    @property
    def advantages(self) -> list[np.ndarray]:
        """[tokens] of each trained rollout, in the order of the step."""
        return [one.advantages for one in self.signals.credited]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the models say of each rollout of the step: lists of [tokens] tensors, in its order."""

    now: list[torch.Tensor]
    entropy: list[torch.Tensor]
    values: list[torch.Tensor]
    divergence: list[torch.Tensor] = field(default_factory=list)

    @staticmethod
    def of(step: Step) -> Scores:
        """Leaves that hold what the plays say."""

        def leaves(name: str) -> list[torch.Tensor]:
            columns = [getattr(play, name) for group in step for play in group]
            lengths = [len(play) for group in step for play in group]
            filled = [np.zeros(size) if column is None else column for column, size in zip(columns, lengths, strict=True)]
            return [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in filled]

        return Scores(now=leaves("now"), entropy=leaves("entropy"), values=leaves("values"), divergence=leaves("divergence"))


@cache
def _validated(options: str) -> tuple[Objective, ObjectiveConfig]:
    parsed = json.loads(options)
    return get(parsed["name"]), validate(parsed)


AFTER = "after"
"""An option of ours alone: the metrics of a step that has gone before, by which an objective has adapted."""


def configured(options: Mapping[str, Any]) -> tuple[Objective, ObjectiveConfig]:
    """The objective and its config as they are in force in the first step, or `AFTER` one."""
    objective, config = _validated(json.dumps({key: value for key, value in options.items() if key != AFTER}))
    return objective, objective.in_force(config, adapted(objective, config, options))


def adapted(objective: Objective, config: ObjectiveConfig, options: Mapping[str, Any]) -> dict[str, float]:
    """What the objective has adapted."""
    state = objective.state(config)
    return objective.next_state(config, state, options[AFTER]) if AFTER in options else state


def prepare(options: Mapping[str, Any], step: Step, *, max_tokens: int = MAX_TOKENS, advantages: Sequence[float] | None = None) -> Prepared:
    """From rewards to weights, as the learner goes about it; or from given advantages, one a rollout."""
    objective, config = configured(options)
    needs = dataclasses.replace(objective.needs(config), passes=1, minibatches=1)
    found, scores = _candidates(step), [_columns(play, start=needs.start) for group in step for play in group]
    if advantages is None:
        signals = signals_of(found, scores, objective, config, needs, seed=(0, 0))
    else:
        given = dataclasses.replace(objective, advantages=lambda groups, _: _split(advantages, step))
        signals = signals_of(found, scores, given, config, needs, seed=(0, 0))
    (part,) = parts_of(
        found.samples,
        signals,
        needs,
        normalization=objective.normalization(config),
        max_tokens=max_tokens,
        skips_zero=objective.zero_advantage_is_zero_loss(config),
        seed=(0, 0),
    )
    more = tuple({name: torch.from_numpy(column) for name, column in play.more.items()} for group in step for play in group)
    return Prepared(objective=objective, config=config, samples=found.samples, signals=signals, part=part, more=more)


def batch_of(prepared: Prepared, scores: Scores) -> tuple[TokenBatch, dict[str, torch.Tensor], list[int]]:
    """The micro-batch of the whole step, the weights of its losses, and the place of each rollout in it."""
    places = {id(sample): index for index, sample in enumerate(prepared.samples)}
    order = [places[id(one.sample)] for unit in prepared.part.active for one in unit]

    def column(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([rows[place] for place in order])

    values = column(scores.values)
    shared = set.intersection(*(set(columns) for columns in prepared.more))
    more = {name: column([columns[name] for columns in prepared.more]) for name in sorted(shared)}
    if scores.divergence:
        more["divergence"] = column(scores.divergence)
    found = LearnerScores(column(scores.now), column(scores.entropy), values, **more)
    batch, weights = token_batch(prepared.part.active, prepared.part, found, step=0)
    return batch, weights, order


def loss_of(
    prepared: Prepared,
    scores: Scores,
    *,
    held: Sequence[np.ndarray] | None = None,
    holds: Sequence[str] = (),
    factors: Mapping[str, float] | None = None,
) -> torch.Tensor:
    """The step's loss, its terms times `factors` of their names, where there are any.

    `held` is added to each column of the batch that `holds` names: what moves along with the policy's log-probs stays where it was
    relative to them, so that a weight made of the two is frozen.
    """
    if not prepared.part.active:
        return torch.zeros((), dtype=torch.float64)
    batch, weights, order = batch_of(prepared, scores)
    if held is not None:
        moved = torch.as_tensor(np.concatenate([held[place] for place in order]))
        columns = {name: getattr(batch, name) for name in holds}
        batch = dataclasses.replace(batch, **{name: value + moved for name, value in columns.items() if value is not None})
    losses = prepared.objective.loss(batch, prepared.config)
    loss = (losses.loss * weights[losses.per]).sum()
    return loss + sum((factors or {}).get(name, 1.0) * weighted(term, weights) for name, term in losses.terms.items())


def slopes_of(loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The gradient of each leaf; 0 where the loss does not depend on it."""
    if not loss.requires_grad:
        return [np.zeros(leaf.shape) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [np.zeros(leaf.shape) if grad is None else grad.numpy() for leaf, grad in zip(leaves, found, strict=True)]


def _candidates(step: Step) -> Candidates:
    samples: list[Sample] = []
    members = []
    for index, group in enumerate(step):
        found = []
        for member, play in enumerate(group):
            rewards = np.array(play.turn_rewards, dtype=np.float64)
            found.append(
                Member(place=len(samples), member=member, rival=play.rival, truncated=False, parts=dict(play.parts), turn_rewards=rewards)
            )
            samples.append(_sample(play, index))
        members.append(tuple(found))
    return Candidates(
        rewards=tuple(np.array([play.reward for play in group]) for group in step),
        members=tuple(members),
        preferences=tuple({} for _ in step),
        sizes=tuple(map(len, step)),
        samples=tuple(samples),
        counts={},
    )


def _sample(play: Play, group: int) -> Sample:
    return Sample(
        group=group,
        rows=(),
        sources=(),
        targets=np.zeros(len(play), dtype=np.int64),
        sampler_logprobs=play.sampler,
        masked=False,
        turn=np.zeros(len(play), dtype=np.int32) if play.turn is None else play.turn,
        version_steps=np.full(len(play), -play.staleness, dtype=np.int32),
        parts=dict(play.parts),
    )


def _columns(play: Play, *, start: bool) -> dict[str, np.ndarray]:
    columns = {REFERENCE: play.reference, START: play.now if start and play.start is None else play.start, VALUES: play.start_values}
    columns[TEACHER] = play.teacher
    if start:
        columns[ENTROPY] = np.zeros(len(play)) if play.entropy is None else play.entropy
    return {name: column for name, column in columns.items() if column is not None}


def _split(flat: Sequence[float], step: Step) -> list[np.ndarray]:
    return np.split(np.array(flat, dtype=np.float64), np.cumsum([len(group) for group in step])[:-1])
