"""What distributions say of a few tokens of each position: log-probs of k chosen ones, the likeliest k, and how far two such are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from agentrl.learner.projection import Gradients, Projection

if TYPE_CHECKING:
    from agentrl.learner.logprobs import Head

SMALLEST_TAIL = -1e-7
"""Log of the most mass that chosen tokens may hold together: what they leave is at least 1e-7, and its log stays finite in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTokens:
    """What a teacher says of a few tokens of each position; all others are one bucket."""

    ids: torch.Tensor
    """[positions, k] int64, different ones."""
    logprobs: torch.Tensor
    """[positions, k] nats, over the whole vocabulary; -inf where a position has fewer than k."""


def chosen_logprobs(student: Projection, ids: torch.Tensor) -> torch.Tensor:
    """[positions, k] log-probs in nats of k chosen tokens of each position, differentiable in hidden, weight and bias.

    Args:
        student: hidden states and head.
        ids: [positions, k] int64.
    """
    found: torch.Tensor = _ChosenLogprobs.apply(  # type: ignore[no-untyped-call]
        student.hidden, student.weight, student.bias, student.head, ids
    )
    return found


@torch.no_grad()
def top_tokens(teacher: Projection, k: int) -> TopTokens:
    """The k most likely tokens of each position, most likely first."""
    best = ids = None
    for tile in teacher.tiles:
        logits = teacher.logits(tile)
        values, places = logits.topk(min(k, logits.shape[1]), dim=1)
        places += tile.start
        if best is not None and ids is not None:
            values, places = torch.cat([best, values], 1), torch.cat([ids, places], 1)
        best, order = values.topk(min(k, values.shape[1]), dim=1)
        ids = places.gather(1, order)
    assert best is not None
    assert ids is not None
    return TopTokens(ids=ids, logprobs=best - teacher.normalizer())


def bucketed(student: torch.Tensor, teacher: torch.Tensor, *, beta: float, tail: bool = True) -> torch.Tensor:
    """The divergence of distributions over k chosen tokens and one bucket for all others.

    Args:
        student: [positions, k] log-probs of the chosen tokens in nats, with gradient.
        teacher: [positions, k] the same, -inf where there is no such token.
        beta: as in `divergence`.
        tail: False leaves the bucket out, and renormalizes both over the chosen tokens.

    Returns: [positions] nats.
    """
    there = teacher > -torch.inf
    if tail:
        own, other = (torch.cat([one, _tail(one, there)], 1) for one in (student, teacher))
        counted = torch.cat([there, there.new_ones(len(there), 1)], 1)
    else:
        own, other = (one - torch.where(there, one, -torch.inf).logsumexp(1, keepdim=True) for one in (student, teacher))
        counted = there
    own, other = (torch.where(counted, one, 0.0) for one in (own, other))
    if beta == 0:
        terms = other.exp() * (other - own)
    elif beta == 1:
        terms = own.exp() * (own - other)
    else:
        mixture = torch.logaddexp(own + math.log1p(-beta), other + math.log(beta))
        terms = beta * other.exp() * (other - mixture) + (1 - beta) * own.exp() * (own - mixture)
    return torch.where(counted, terms, 0.0).sum(1)


def _tail(logprobs: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """[positions, 1] log of the mass that the chosen tokens leave."""
    mass = torch.where(there, logprobs, -torch.inf).logsumexp(1, keepdim=True).clamp(max=SMALLEST_TAIL)
    return torch.log(-torch.expm1(mass))


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: Head, ids: torch.Tensor
    ) -> torch.Tensor:
        student = Projection(hidden=hidden, weight=weight, bias=bias, head=head)
        total = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.promote_types(hidden.dtype, torch.float32))
        chosen = total.new_zeros(ids.shape)
        for tile in student.tiles:
            logits = student.logits(tile)
            total = torch.logaddexp(total, logits.logsumexp(1, keepdim=True))
            places, inside = _within(ids, tile)
            chosen = torch.where(inside, logits.gather(1, places), chosen)
        ctx.head = head
        ctx.save_for_backward(hidden, weight, bias, ids, total)
        return chosen - total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, ids, total = ctx.saved_tensors
        head = ctx.head
        student = Projection(hidden=hidden, weight=weight, bias=bias, head=head)
        upstream = grads[0] * (head.scale / head.temperature)
        collected = Gradients(student, ctx.needs_input_grad)
        whole = upstream.sum(1, keepdim=True)
        for tile in student.tiles:
            logits, slope = student.with_slope(tile)
            delta = logits.sub_(total).exp_().mul_(-whole)
            places, inside = _within(ids, tile)
            delta.scatter_add_(1, places, torch.where(inside, upstream, 0.0))
            collected.add(tile, delta, slope)
            del logits, delta, slope  # one tile at a time
        return (*collected.taken, None, None)


def _within(ids: torch.Tensor, tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the ids in a tile, and whether they are in it."""
    places = ids - tile.start
    width = tile.stop - tile.start
    return places.clamp(0, width - 1), (places >= 0) & (places < width)
