"""Gradients against central differences of agentrl's own loss, in float64.

What is under a stop-gradient must stay where it is while a log-prob moves. It does without touching the objective's code: a weight
made of policy / sampler is held by moving the sampler's log-prob along, one of policy / reference by moving the reference's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import report_enumeration as world
import torch
from report_cells import Cell, gap, verdict
from report_ours import Play, Prepared, Scores, Step, batch_of, loss_of, prepare, slopes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BOUND = 1e-9
"""Five-point differences with h = 1e-3 are good to some 1e-11."""
H = 1e-3
ALL = ("sampler_logprobs", "start_logprobs", "reference_logprobs")
STENCIL = ((1, 8), (-1, -8), (2, -1), (-2, 1))


def random_step(seed: int = 0, *, rivals: bool = False, start: bool = True, groups: int = 2, members: int = 4) -> Step:
    """Ragged rollouts off policy, with columns for everything that an objective may ask for."""
    draw = np.random.default_rng(seed)

    def rollout(member: int) -> Play:
        length = int(draw.integers(1, 5))
        now = -draw.uniform(0.2, 3.0, length)
        sampler = now + draw.normal(0, 0.3, length)
        return Play(
            now=now,
            sampler=sampler,
            start=(now + sampler) / 2 + draw.normal(0, 0.15, length) if start else None,
            reference=now + draw.normal(0, 0.4, length),
            entropy=draw.uniform(0.2, 1.5, length),
            values=draw.normal(0, 0.5, length),
            start_values=draw.normal(0, 0.5, length),
            reward=float(draw.uniform(0.05, 0.95)),
            turn=np.arange(length, dtype=np.int32) // 2,
            turn_rewards=tuple(draw.normal(0, 0.2, (length + 1) // 2)),
            parts={"right": float(draw.integers(0, 2)), "style": float(draw.uniform())},
            rival=rivals and member >= members // 2,
            staleness=1,
            teacher=now + draw.normal(0, 0.4, length),
            divergence=draw.uniform(0.01, 0.5, length),
        )

    return [[rollout(member) for member in range(members)] for _ in range(groups)]


def numeric(
    prepared: Prepared, scores: Scores, column: str, moves: Callable[[Prepared, Scores, np.ndarray], np.ndarray] | None
) -> list[np.ndarray]:
    """Central differences of the loss in one of the models' columns.

    `moves` says by how much the frozen columns move along with a change of all log-probs, [tokens of the step] each.
    """
    leaves: list[torch.Tensor] = getattr(scores, column)
    lengths = [len(leaf) for leaf in leaves]
    found = np.zeros(sum(lengths))
    for place in range(len(found)):
        for steps, weight in STENCIL:
            change = np.zeros(len(found))
            change[place] = steps * H
            parts = np.split(change, np.cumsum(lengths)[:-1])
            moved = [leaf.detach() + torch.from_numpy(part) for leaf, part in zip(leaves, parts, strict=True)]
            held = None
            if moves is not None and column == "now":
                held = np.split(moves(prepared, scores, change), np.cumsum(lengths)[:-1])
            value = loss_of(prepared, dataclasses.replace(scores, **{column: moved}), held=held, holds=ALL)
            found[place] += weight * float(value.detach()) / (12 * H)
    return np.split(found, np.cumsum(lengths)[:-1])


def differences(
    options: Mapping[str, Any],
    step: Step,
    *,
    frozen: tuple[Mapping[str, Any], Step] | None = None,
    moves: Callable[[Prepared, Scores, np.ndarray], np.ndarray] | None = None,
) -> list[float]:
    """Relative errors of the loss's gradient in log-probs, entropies and values.

    `frozen` is another loss whose differences are taken: the same one with what is under a stop-gradient given as a constant.
    """
    prepared, scores = prepare(options, step), Scores.of(step)
    other = prepared if frozen is None else prepare(*frozen)
    gaps = []
    for column in ("now", "entropy", "values", "divergence"):
        exact = slopes_of(loss_of(prepared, scores), getattr(scores, column))
        rough = numeric(other, scores, column, moves)
        if column == "now" or any(one.any() for one in exact) or any(one.any() for one in rough):
            gaps.append(gap(np.concatenate(exact), np.concatenate(rough)))
    return gaps


def everything(prepared: Prepared, scores: Scores, change: np.ndarray) -> np.ndarray:
    return change


def detached(prepared: Prepared, scores: Scores, change: np.ndarray) -> np.ndarray:
    """The tokens that Clip-Cov takes the gradient from: their ratios are held."""
    batch, _, order = batch_of(prepared, scores)
    lengths = [len(leaf) for leaf in scores.now]
    marks: list[np.ndarray] = [np.zeros(0)] * len(lengths)
    pieces = np.split(batch.columns["detached"].numpy(), np.cumsum([lengths[place] for place in order])[:-1])
    for place, piece in zip(order, pieces, strict=True):
        marks[place] = piece
    # A rollout without an advantage is not computed, and has no gradient that could be wrong.
    return change * np.concatenate([mark if len(mark) else np.zeros(size) for mark, size in zip(marks, lengths, strict=True)])


def straight(options: Mapping[str, Any], **shape: Any) -> Cell:
    """Nothing is under a stop-gradient but what the step began with."""
    return verdict(differences(options, random_step(**shape)), bound=BOUND)


def with_the_sampler(options: Mapping[str, Any], **shape: Any) -> Cell:
    """Weights under a stop-gradient are held by moving what they are measured against."""
    return verdict(
        differences(options, random_step(**shape), moves=everything),
        bound=BOUND,
        note="what is under a stop-gradient is held by moving the log-probs that it is measured against along",
    )


def both(options: Mapping[str, Any], weighted: Mapping[str, Any]) -> Cell:
    """Options with nothing under a stop-gradient, and others with a weight that is."""
    cell = with_the_sampler(weighted)
    return verdict([straight(options).error or 0.0, cell.error or 0.0], bound=BOUND, note=cell.note)


def without_the_detached(options: Mapping[str, Any]) -> Cell:
    return verdict(
        differences(options, random_step(start=False), moves=detached), bound=BOUND, note="the ratios of tokens without a gradient are held"
    )


def interpolated(options: Mapping[str, Any]) -> Cell:
    """The proximal policy is a constant: held by giving it as the learner's start to the loss that reads it there."""
    step = random_step(1)  # of the first seed one ratio lies within h of the clip
    held = [[dataclasses.replace(one, start=one.sampler + 0.5 * (one.now - one.sampler)) for one in group] for group in step]
    recomputed = {**options, "proximal": "recomputed"}
    return verdict(
        differences(options, step, frozen=(recomputed, held)), bound=BOUND, note="the proximal policy is held: given as the start"
    )


def of_expectation(value: Callable[[np.ndarray], float], gradient: np.ndarray, note: str) -> Cell:
    """A gradient of the tables against differences of an expected value in the policy's logits."""
    rough = np.zeros((4, 3))
    for place in np.ndindex(4, 3):
        for steps, weight in STENCIL:
            moved = world.THETA.copy()
            moved[place] += steps * H
            rough[place] += weight * value(moved) / (12 * H)
    return verdict([gap(gradient, rough)], bound=BOUND, note=note)


def weighted_kl(options: Mapping[str, Any]) -> Cell:
    """r k1 and r k2 are written with the slope of the KL, not of themselves: its exact value over the vocabulary is differenced."""
    where = world.OFF_POLICY
    plain = {**options, "scale_rewards": "none", "normalization": "constant"}
    without = {key: value for key, value in plain.items() if key not in ("beta", "kl_estimator", "kl_correction")}
    added = world.expected(where, plain)[0].logits - world.expected(where, without)[0].logits

    def value(logits: np.ndarray) -> float:
        log_ratio = world.logs(logits) - world.logs(where.reference)
        kl = (np.exp(world.logs(logits)) * log_ratio).sum(1)
        return float(options["beta"] * (world.visits(where.sampler) * kl).sum() / world.LONGEST)

    return of_expectation(value, added, "of the exact KL over the vocabulary, whose slope this is, not its own")


def pairs(options: Mapping[str, Any], *, rivals: bool) -> Cell:
    """Differences of a step's loss, and of the expected loss over all pairs with their probabilities held."""
    where = world.OFF_POLICY
    beta, alpha = options.get("beta", 0.1), options.get("alpha", 1e-5) if rivals else 0.0
    other = world.mixture(where, 1.0 if rivals else None)

    def value(logits: np.ndarray) -> float:
        total = 0.0
        for first in world.RAGGED:
            for second in world.RAGGED:
                if world.REWARD[first] == world.REWARD[second]:
                    continue
                better, worse = (first, second) if world.REWARD[first] > world.REWARD[second] else (second, first)
                h = [math.log(world.chance(logits, one) / world.chance(where.reference, one)) for one in (better, worse)]
                margin = h[0] - h[1]
                loss = (margin - 1 / (2 * beta)) ** 2 if options.get("loss") == "ipo" else math.log1p(math.exp(-beta * margin))
                weight = world.chance(where.sampler, first) * world.chance(other, second)
                total += weight * (loss + alpha * math.log(world.chance(logits, second)))
        return total

    found = of_expectation(value, world.expected(where, options)[0].logits, "")
    return verdict(
        [*differences(options, random_step(rivals=rivals)), found.error or 0.0], bound=BOUND, note="and of the expected loss over all pairs"
    )
