"""How far two distributions over different vocabularies are apart, piece of text by piece of text.

Of each piece both models have one distribution over their own words, times the chances of the piece's other tokens. Universal logit
distillation compares the probabilities by rank, without asking which words they are of (Boizard et al. 2024, arXiv:2402.12030, eq. 3):

    sum over ranks |sorted student - sorted teacher|

The hybrid form (GOLD) compares words that both vocabularies have one by one, with a generalized Jensen-Shannon divergence, and only the
others by rank. Whole distributions of a few pieces exist at a time, forward and backward, within the memory of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.learner.projection import Projection
    from agentrl.objectives.needs import Words

FLOOR = 1e-8
"""Least probability in the divergence of single words: that of TRL, so that a word which one side has no chance of stays finite."""
COPIES = 6
"""Arrays of a piece's distributions that are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One model's tokens of the pieces, in order of the pieces."""

    projection: Projection
    places: torch.Tensor
    """[tokens] int64: which of its trained positions each is."""
    targets: torch.Tensor
    """[tokens] int64."""
    groups: torch.Tensor
    """[tokens] int64, ascending from 0: the piece that each is part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Which words are the same."""

    own: torch.Tensor
    """[matched] int64."""
    other: torch.Tensor
    """[matched] int64: the teacher's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """[pieces] nats or probability each."""

    loss: torch.Tensor
    """Differentiable in the student's hidden states and head."""
    matched: torch.Tensor
    """Of the words that both have, without gradient and weight; 0 where they are not told apart."""
    unmatched: torch.Tensor


def compare(own: Side, other: Side, num_pieces: int, how: Words, matched: Matched | None) -> Comparison:
    """The distance of each piece.

    Args:
        own: of the student, which gets the gradient.
        other: of the teacher.
        num_pieces: each has a token on either side.
        how: which distance.
        matched: the words that both have, for the hybrid form; None compares all by rank.
    """
    if not num_pieces:
        nothing = own.projection.hidden.flatten()[:0]
        return Comparison(loss=nothing * 1.0, matched=nothing.detach(), unmatched=nothing.detach())
    found = [
        _compared(_cut(own, first, last), _cut(other, first, last), last - first, how, matched)
        for first, last in _chunks(own, other, num_pieces)
    ]
    loss, one, two = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Comparison(loss=loss, matched=one.detach(), unmatched=two.detach())


def _chunks(own: Side, other: Side, num_pieces: int) -> Iterator[tuple[int, int]]:
    """Runs of pieces whose distributions fit the memory, at least one each."""
    counts = sum(
        torch.bincount(side.groups, minlength=num_pieces).double() * len(side.projection.weight) * 4 * COPIES for side in (own, other)
    )
    assert isinstance(counts, torch.Tensor)
    most = own.projection.head.tile_mib * 2**20
    first, held = 0, 0.0
    for piece, size in enumerate(counts.tolist()):
        if piece > first and held + size > most:
            yield first, piece
            first, held = piece, 0.0
        held += size
    yield first, num_pieces


def _cut(side: Side, first: int, last: int) -> Side:
    start, end = torch.searchsorted(side.groups, torch.tensor([first, last], device=side.groups.device)).tolist()
    return Side(
        projection=side.projection,
        places=side.places[start:end],
        targets=side.targets[start:end],
        groups=side.groups[start:end] - first,
    )


def _compared(own: Side, other: Side, count: int, how: Words, matched: Matched | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All of it is computed again in the backward pass: only hidden states are kept."""

    def work(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        there = other.projection
        with torch.no_grad():
            theirs = _distributions(other, there.hidden, there.weight, there.bias, count, how, how.temperature)
        mine = _distributions(own, hidden, weight, bias, count, how, how.own_temperature)
        if matched is not None:
            return hybrid(mine, theirs, matched, how)
        loss = by_rank(mine, theirs)
        return loss, torch.zeros_like(loss), loss

    mine = own.projection
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = checkpoint(
        work, mine.hidden, mine.weight, mine.bias, use_reentrant=False, preserve_rng_state=False
    )
    return found


def _distributions(
    side: Side, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, count: int, how: Words, temperature: float
) -> torch.Tensor:
    """[pieces, vocabulary] probabilities, not normalized where a piece has several tokens."""
    head = side.projection.head
    logits = torch.nn.functional.linear(hidden.index_select(0, side.places), weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = torch.log_softmax(logits / temperature, 1)
    chosen = logprobs.gather(1, side.targets[:, None]).squeeze(1)
    ends = torch.searchsorted(side.groups, torch.arange(count, device=side.groups.device), right=how.merge == "bayesian")
    base = ends - 1 if how.merge == "bayesian" else ends
    rest = chosen.new_zeros(count).index_add(0, side.groups, chosen) - chosen[base]
    return (logprobs[base] + rest[:, None]).exp()


def by_rank(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[pieces] sum of |sorted own - sorted other|, the shorter of the two with zeros behind.

    Args:
        own: [pieces, words] probabilities, differentiable.
        other: [pieces, other words].
    """
    width = max(own.shape[1], other.shape[1])
    left, right = (torch.nn.functional.pad(one.sort(1, descending=True).values, (0, width - one.shape[1])) for one in (own, other))
    return (left - right).abs().sum(1)


def hybrid(own: torch.Tensor, other: torch.Tensor, matched: Matched, how: Words) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[pieces] the weighted sum, the divergence of the words that both have, and the distance by rank of the others."""
    one = _divergence(own[:, matched.own], other[:, matched.other], how.beta)
    two = by_rank(_without(own, matched.own), _without(other, matched.other))
    share = len(matched.other) / other.shape[1]
    weights = (
        share if how.matched_weight is None else how.matched_weight,
        1.0 - share if how.unmatched_weight is None else how.unmatched_weight,
    )
    return weights[0] * one + weights[1] * two, one, two


def _without(chances: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    left = torch.ones(chances.shape[1], dtype=torch.bool, device=chances.device)
    left[words] = False
    return chances[:, left]


def _divergence(own: torch.Tensor, other: torch.Tensor, beta: float) -> torch.Tensor:
    """[pieces] the generalized Jensen-Shannon divergence of parts of two distributions, each as it is."""
    mine, theirs = own.clamp_min(FLOOR).log(), other.clamp_min(FLOOR).log()
    if beta == 0:
        return (theirs.exp() * (theirs - mine)).sum(1)
    if beta == 1:
        return (mine.exp() * (mine - theirs)).sum(1)
    middle = torch.logaddexp(mine + math.log1p(-beta), theirs + math.log(beta))
    return (beta * theirs.exp() * (theirs - middle) + (1 - beta) * mine.exp() * (mine - middle)).sum(1)
