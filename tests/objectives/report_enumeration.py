"""Expected losses and gradients on a vocabulary of three tokens, by enumeration of every step that could be sampled, in float64.

Policies are tables of logits: row 0 for the first token, row 1 + a for the one after a. Token 0 ends a completion, and so does the
second token. The critic is a table of a value for each of the four rows. Expectations are exact sums: nothing here is statistical.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report_ours import Play, Scores, Step, configured, loss_of, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from report_papers import Slopes

RAGGED = ((0,), *itertools.product((1, 2), range(3)))
"""Seven completions of one or two tokens."""
SINGLES = ((0,), (1,), (2,))
LONGEST = 2

Completion = tuple[int, ...]


def table(seed: int, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, (4, 3))


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Logits [4, 3] of every policy, and the critic's values [4]."""

    now: np.ndarray
    sampler: np.ndarray
    start: np.ndarray | None = None
    reference: np.ndarray
    values: np.ndarray
    start_values: np.ndarray
    staleness: int = 0
    teacher: np.ndarray = field(default_factory=lambda: table(8, 1.2))


THETA, MU, REFERENCE = table(1), table(1) + table(2, 0.4), table(3)
VALUES, START_VALUES = np.array([0.3, 0.5, -0.2, 0.4]), np.array([0.25, 0.1, 0.3, 0.05])
COMMON: dict[str, Any] = {"reference": REFERENCE, "values": VALUES, "start_values": START_VALUES}
ON_POLICY = World(now=THETA, sampler=THETA, **COMMON)
OFF_POLICY = World(now=THETA, sampler=MU, staleness=1, **COMMON)
LATE = World(now=THETA, sampler=MU, start=(THETA + MU) / 2 + table(5, 0.2), staleness=2, **COMMON)
"""Off policy in a later optimizer step of its step: the policy has moved from the learner's start."""

# In eighths, so that means of groups are equal or far apart: a Beta distribution fitted to almost equal means is all rounding.
REWARD: dict[Completion, float] = dict(zip((*RAGGED, (1,), (2,)), np.array([7, 4, 0, 1, 5, 3, 6, 6, 1]) / 8, strict=True))
STYLE = dict(zip((*RAGGED, (1,), (2,)), np.random.default_rng(6).uniform(0, 1, 9).tolist(), strict=True))
FIRST_TURN = {0: 0.0, 1: 0.3, 2: -0.2}
"""Of the reward, what the environment gave for the first token, where each token is a turn."""


@cache
def _logs(key: bytes) -> np.ndarray:
    # By torch, because the policy's own log-probs come from there: on policy the two must be the same bits.
    return torch.from_numpy(np.frombuffer(key).reshape(4, 3).copy()).log_softmax(-1).numpy()


def logs(logits: np.ndarray) -> np.ndarray:
    return _logs(np.ascontiguousarray(logits).tobytes())


def entropies(logits: np.ndarray) -> np.ndarray:
    """[4] nats."""
    return -(np.exp(logs(logits)) * logs(logits)).sum(1)


def contexts(completion: Completion) -> list[int]:
    return [0, *(1 + token for token in completion[:-1])]


def chance(logits: np.ndarray, completion: Completion) -> float:
    return float(np.exp(logs(logits)[contexts(completion), list(completion)].sum()))


def mixture(world: World, share: float | None) -> np.ndarray:
    """Logits of the policy that samples rivals: token by token a geometric mixture of the sampler and the reference."""
    return world.sampler if share is None else (1 - share) * logs(world.sampler) + share * logs(world.reference)


def play(world: World, completion: Completion, sampler: np.ndarray, *, rival: bool, divergence: np.ndarray | None = None) -> Play:
    rows, tokens = contexts(completion), list(completion)
    first = FIRST_TURN[completion[0]]
    return Play(
        now=logs(world.now)[rows, tokens],
        sampler=logs(sampler)[rows, tokens],
        start=None if world.start is None else logs(world.start)[rows, tokens],
        reference=logs(world.reference)[rows, tokens],
        entropy=entropies(world.now)[rows],
        values=world.values[rows],
        start_values=world.start_values[rows],
        reward=REWARD[completion],
        turn=np.arange(len(completion), dtype=np.int32),
        turn_rewards=(first, 0.0)[: len(completion)],
        # One completion has no style: a part that a rollout lacks.
        parts={"right": REWARD[completion]} | ({} if completion == (1, 2) else {"style": STYLE[completion]}),
        rival=rival,
        staleness=world.staleness,
        teacher=logs(world.teacher)[rows, tokens],
        divergence=None if divergence is None else divergence[rows],
        more={"collision": np.log((np.exp(logs(world.now)) ** 2).sum(1))[rows]},
    )


def better_first(group: tuple[Completion, ...]) -> tuple[Completion, ...]:
    """A dataset's pair: the chosen text before the rejected one, and any others as they are."""
    return (*sorted(group[:2], key=lambda one: -REWARD[one]), *group[2:])


def steps(
    world: World, options: Mapping[str, Any], completions: tuple[Completion, ...], groups: int, size: int
) -> Iterator[tuple[float, list]]:
    """(probability, completions of each group) of every step. Orders of groups count once where there are several: see another column."""
    objective, config = configured(options)
    rival = mixture(world, objective.needs(config).rival)
    half = size // 2 if objective.needs(config).rival is not None else size
    drawn: list[tuple[float, tuple[Completion, ...]]] = []
    for group in itertools.product(completions, repeat=size):
        samplers = [world.sampler] * half + [rival] * (size - half)
        weight = float(np.prod([chance(sampler, one) for sampler, one in zip(samplers, group, strict=True)]))
        drawn.append((weight, better_first(group) if objective.data == "preference" else group))
    if groups == 1:
        yield from ((weight, [group]) for weight, group in drawn)
        return
    unordered: Counter[tuple[Completion, ...]] = Counter()
    for weight, group in drawn:
        unordered[group if objective.data == "preference" else tuple(sorted(group))] += weight  # type: ignore[assignment]
    kinds = list(unordered.items())
    for (i, (left, a)), (j, (right, b)) in itertools.combinations_with_replacement(enumerate(kinds), 2):
        yield a * b * (1 if i == j else 2), [left, right]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An expected loss, and its gradient with respect to the policy's logits [4, 3] and the critic's values [4]."""

    loss: float
    logits: np.ndarray
    values: np.ndarray


def plays_of(world: World, options: Mapping[str, Any], groups: list) -> Step:
    objective, config = configured(options)
    share = objective.needs(config).rival
    divergence = divergences(world, torch.from_numpy(logs(world.now)), options)[0].numpy()
    return [
        [
            play(world, one, mixture(world, share) if rival else world.sampler, rival=rival, divergence=divergence)
            for one, rival in ((one, share is not None and index >= len(group) // 2) for index, one in enumerate(group))
        ]
        for group in groups
    ]


def expected(
    world: World,
    options: Mapping[str, Any],
    paper: Any = None,
    *,
    completions: tuple[Completion, ...] = RAGGED,
    groups: int = 1,
    size: int = 2,
) -> tuple[Expected, Expected]:
    """agentrl's expectations, and the paper's where there is one to follow."""
    logits = torch.tensor(world.now, requires_grad=True)
    values = torch.tensor(world.values, requires_grad=True)
    scores = logits.log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(1)
    total = torch.zeros((), dtype=torch.float64)
    divergence, slopes = divergences(world, scores, options)
    written = Sum(world, slopes)
    for weight, chosen in steps(world, options, completions, groups, size):
        step = plays_of(world, options, chosen)
        flat = [one for group in chosen for one in group]
        rows = [contexts(one) for one in flat]
        now = [scores[row, list(one)] for row, one in zip(rows, flat, strict=True)]
        columns = {"entropy": entropy, "values": values, "divergence": divergence}
        found = Scores(now=now, **{name: [column[row] for row in rows] for name, column in columns.items()})
        total = total + weight * loss_of(prepare(options, step, max_tokens=LONGEST), found)
        if paper is not None:
            written.add(weight, flat, paper(step, LONGEST))
    total = total + 0.0 * (logits.sum() + values.sum())
    by_logits, by_values = torch.autograd.grad(total, [logits, values])
    return Expected(loss=total.item(), logits=by_logits.numpy(), values=by_values.numpy()), written.total


def divergences(world: World, scores: torch.Tensor, options: Mapping[str, Any]) -> tuple[torch.Tensor, np.ndarray]:
    """[4] between the teacher and the policy as the objective asks for it, and its slopes in the policy's logits [4, 3], written out.

    KL(teacher | policy) at beta 0, KL(policy | teacher) at beta 1, else (1 - beta) KL(policy | m) + beta KL(teacher | m) with
    m = (1 - beta) policy + beta teacher. With top_k all but the teacher's k tokens are one word.
    """
    objective, config = configured(options)
    asked = objective.needs(config).teacher
    if asked is None or asked.divergence is None:
        return torch.zeros(4, dtype=torch.float64), np.zeros((4, 3))
    beta, heat = asked.divergence, asked.temperature or 1.0
    teacher = np.exp(logs(logs(world.teacher) / heat))
    policy = (scores / heat).softmax(-1)
    merge = np.stack([_buckets(row, asked.top_k) for row in teacher])  # [4, words, buckets]
    own, other = torch.einsum("rv,rvb->rb", policy, torch.from_numpy(merge)), torch.from_numpy(np.einsum("rv,rvb->rb", teacher, merge))
    middle = (1 - beta) * own + beta * other
    share = 1.0 if beta == 1 else 1 - beta

    def kl(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return torch.where(one > 0, one * (one / two).log(), 0.0).sum(1)

    found = kl(other, own) if beta == 0 else share * kl(own, middle) + (0.0 if beta == 1 else beta * kl(other, middle))
    p = policy.detach().numpy()
    if beta == 0:
        by_word = -np.einsum("rvb,rb->rv", merge, (other / own.detach()).numpy())
    else:
        by_word = share * np.einsum("rvb,rb->rv", merge, (own.detach() / middle.detach()).clamp(min=1e-300).log().numpy())
    return found, p * (by_word - (p * by_word).sum(1, keepdims=True)) / heat


def _buckets(teacher: np.ndarray, top_k: int | None) -> np.ndarray:
    """[words, buckets] of 0 and 1."""
    if top_k is None or top_k >= len(teacher):
        return np.eye(len(teacher))
    best = np.argsort(-teacher)[:top_k]
    found = np.zeros((len(teacher), top_k + 1))
    found[best, range(top_k)] = 1
    found[:, top_k] = 1 - found.sum(1)
    return found


class Sum:
    """Adds up slopes of log-probs, entropies and values into gradients of the tables, by the derivative of a softmax."""

    def __init__(self, world: World, divergence: np.ndarray) -> None:
        self._divergence = divergence
        self._policy, self._entropies, self._logs = np.exp(logs(world.now)), entropies(world.now), logs(world.now)
        self._loss, self._logits, self._values = 0.0, np.zeros((4, 3)), np.zeros(4)

    def add(self, weight: float, completions: list[Completion], slopes: Slopes) -> None:
        self._loss += weight * slopes.loss
        for one, column in zip(completions, slopes.divergence, strict=False):
            for row, slope in zip(contexts(one), column, strict=True):
                self._logits[row] += weight * slope * self._divergence[row]
        for one, now, entropy, values in zip(completions, slopes.now, slopes.entropy, slopes.values, strict=True):
            for row, token, by_now, by_entropy, by_value in zip(contexts(one), one, now, entropy, values, strict=True):
                self._logits[row] += weight * by_now * (np.eye(3)[token] - self._policy[row])
                self._logits[row] -= weight * by_entropy * self._policy[row] * (self._logs[row] + self._entropies[row])
                self._values[row] += weight * by_value

    @property
    def total(self) -> Expected:
        return Expected(loss=self._loss, logits=self._logits, values=self._values)


def policy_gradient(world: World, completions: tuple[Completion, ...] = RAGGED, *, beta: float = 0.0) -> np.ndarray:
    """Gradient of E[R] - beta KL(policy || reference) of whole completions, [4, 3]: an exact sum over all of them."""
    policy, found = np.exp(logs(world.now)), np.zeros((4, 3))
    for one in completions:
        rows, tokens = contexts(one), list(one)
        worth = REWARD[one] - beta * (logs(world.now) - logs(world.reference))[rows, tokens].sum()
        for row, token in zip(rows, tokens, strict=True):
            found[row] += chance(world.now, one) * worth * (np.eye(3)[token] - policy[row])
    return found


def visits(sampler: np.ndarray) -> np.ndarray:
    """[4] how often a completion of the sampler reaches each row."""
    first = np.exp(logs(sampler))[0]
    return np.array([1.0, 0.0, first[1], first[2]])
