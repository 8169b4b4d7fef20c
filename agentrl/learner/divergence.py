"""How far a teacher's distributions are from the student's, without a [positions, vocabulary] matrix.

The generalized Jensen-Shannon divergence of Agarwal et al. 2024, arXiv:2306.13649, eq. 1, of student S and teacher T:

    beta 0      KL(T | S)
    beta 1      KL(S | T)
    between     beta KL(T | M) + (1 - beta) KL(S | M),  M = (1 - beta) S + beta T

Logits of both exist for one tile of the vocabulary at a time, forward and backward, as in `agentrl.learner.logprobs`. A first pass finds
both normalizers, a second adds the divergence up; the backward pass computes the tiles again. The teacher gets no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from agentrl.learner.logprobs import Head, logits_of, token_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALLEST_TAIL = -1e-7
"""Log of the most mass that chosen tokens may hold together: what they leave is at least 1e-7, and its log stays finite in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Hidden states of some positions, and the head that makes distributions of them."""

    hidden: torch.Tensor
    """[positions, size]; the products are computed in its type."""
    weight: torch.Tensor
    """[vocabulary, size], of the same type."""
    bias: torch.Tensor | None
    """[vocabulary] or None."""
    head: Head
    """Its temperature is that of the divergence."""

    def first(self, words: int) -> Projection:
        """The distribution over the first words of the vocabulary alone: where a head is padded, what is beyond means nothing."""
        if words == len(self.weight):
            return self
        return replace(self, weight=self.weight[:words], bias=None if self.bias is None else self.bias[:words])

    def token_logprobs(self, targets: torch.Tensor) -> torch.Tensor:
        """[positions] log-probs of the targets, in nats."""
        return token_logprobs(self.hidden, self.weight, self.bias, targets, self.head).logprobs

    def logits(self, tile: slice) -> torch.Tensor:
        """[positions, width] after the temperature, in float32 or better."""
        return self._raw(tile).div_(self.head.temperature)

    def with_slope(self, tile: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same, and the slope of the soft cap there."""
        raw = self._raw(tile)
        slope = None if self.head.softcap is None else (raw / self.head.softcap).square_().neg_().add_(1.0)
        return raw.div_(self.head.temperature), slope

    def _raw(self, tile: slice) -> torch.Tensor:
        return logits_of(self.hidden, self.weight[tile], None if self.bias is None else self.bias[tile], self.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTokens:
    """What a teacher says of a few tokens of each position; all others are one bucket."""

    ids: torch.Tensor
    """[positions, k] int64, different ones."""
    logprobs: torch.Tensor
    """[positions, k] nats, over the whole vocabulary; -inf where a position has fewer than k."""


def divergence(student: Projection, teacher: Projection | TopTokens, *, beta: float, tail: bool = True) -> torch.Tensor:
    """The generalized Jensen-Shannon divergence of each position.

    Args:
        student: its hidden states, weight and bias get a gradient.
        teacher: of the same positions. Where the two heads have different sizes both distributions are those of the words that both
            have; that these mean the same is checked elsewhere. With `TopTokens` the divergence is that of k + 1 buckets, the last one
            holding all other words: at most that of the whole distributions.
        beta: 0 is KL(T | S), 1 is KL(S | T).
        tail: of `TopTokens`, False leaves the bucket of all other words out, and renormalizes both over the k.

    Returns: [positions] nats, in float32 or better.
    """
    if isinstance(teacher, TopTokens):
        chosen = chosen_logprobs(student, teacher.ids)
        return bucketed(chosen, teacher.logprobs.to(chosen.dtype), beta=beta, tail=tail)
    words = min(len(student.weight), len(teacher.weight))
    own, other = student.first(words), teacher.first(words)
    found: torch.Tensor = _Divergence.apply(own.hidden, own.weight, own.bias, own.head, other, beta)  # type: ignore[no-untyped-call]
    return found


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
    for tile in _tiles(teacher):
        logits = teacher.logits(tile)
        values, places = logits.topk(min(k, logits.shape[1]), dim=1)
        places += tile.start
        if best is not None and ids is not None:
            values, places = torch.cat([best, values], 1), torch.cat([ids, places], 1)
        best, order = values.topk(min(k, values.shape[1]), dim=1)
        ids = places.gather(1, order)
    assert best is not None
    assert ids is not None
    return TopTokens(ids=ids, logprobs=best - _normalizer(teacher))


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


def _tiles(one: Projection) -> Iterator[slice]:
    return one.head.tiles(len(one.hidden), len(one.weight))


def _normalizer(one: Projection) -> torch.Tensor:
    """[positions, 1] log of the sum of exp(logits)."""
    total = one.hidden.new_full((len(one.hidden), 1), -torch.inf, dtype=torch.promote_types(one.hidden.dtype, torch.float32))
    for tile in _tiles(one):
        total = torch.logaddexp(total, one.logits(tile).logsumexp(1, keepdim=True))
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        teacher: Projection,
        beta: float,
    ) -> torch.Tensor:
        student = Projection(hidden=hidden, weight=weight, bias=bias, head=head)
        tiles, kept = list(_tiles(student)), None
        if len(tiles) == 1:  # within the memory that a tile may take: its slope stays, and spares the backward pass both products
            own, other = student.logits(tiles[0]), teacher.logits(tiles[0])
            mine, theirs = (one.logsumexp(1, keepdim=True) for one in (own, other))
            of_student, of_teacher = _sums(own.sub_(mine), other.sub_(theirs), beta)
            if any(ctx.needs_input_grad[:3]) and head.softcap is None:
                kept = _slopes(own, other, of_student, beta)
        else:
            mine, theirs = _normalizer(student), _normalizer(teacher)
            of_student, of_teacher = torch.zeros_like(mine), torch.zeros_like(mine)
            for tile in tiles:
                sums = _sums(student.logits(tile).sub_(mine), teacher.logits(tile).sub_(theirs), beta)
                of_student += sums[0]
                of_teacher += sums[1]
        ctx.head, ctx.beta, ctx.teacher = head, beta, (teacher.head, teacher.bias)
        others = (None, None) if kept is not None else (teacher.hidden, teacher.weight)
        ctx.save_for_backward(hidden, weight, bias, mine, theirs, of_student, kept, *others)
        share = _shares(beta)
        return (share[0] * of_teacher + share[1] * of_student).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, mine, theirs, of_student, kept, their_hidden, their_weight = ctx.saved_tensors
        head, beta = ctx.head, ctx.beta
        student = Projection(hidden=hidden, weight=weight, bias=bias, head=head)
        teacher = Projection(hidden=their_hidden, weight=their_weight, bias=ctx.teacher[1], head=ctx.teacher[0])
        upstream = grads[0][:, None] * (head.scale / head.temperature)
        collected = _Gradients(student, ctx.needs_input_grad)
        for tile in _tiles(student):
            if kept is not None:
                delta, slope = kept * upstream, None
            else:
                own, slope = student.with_slope(tile)
                delta = _slopes(own.sub_(mine), teacher.logits(tile).sub_(theirs), of_student, beta).mul_(upstream)
                del own
            collected.add(tile, delta, slope)
            del delta, slope  # one tile at a time
        return (*collected.taken, None, None, None)


def _shares(beta: float) -> tuple[float, float]:
    """Of KL(T | M) and KL(S | M)."""
    return (1.0, 0.0) if beta == 0 else (0.0, 1.0) if beta == 1 else (beta, 1.0 - beta)


def _middle(own: torch.Tensor, other: torch.Tensor, chances: torch.Tensor, others: torch.Tensor | None, beta: float) -> torch.Tensor:
    """Log of the distribution that both are held against, of log-probs and probabilities; where it is made, in the place of `others`."""
    if others is None:
        return other
    return others.mul_(beta).add_(chances, alpha=1 - beta).clamp_(min=torch.finfo(own.dtype).tiny).log_()


def _sums(own: torch.Tensor, other: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[positions, 1] a tile's parts of KL(S | M) and KL(T | M), out of log-probs; 0 for one that has no share."""
    nothing = own.new_zeros(len(own), 1)
    if beta == 0:
        return nothing, (other.exp() * (other - own)).sum(1, keepdim=True)
    chances = own.exp()
    if beta == 1:
        return chances.mul_(own - other).sum(1, keepdim=True), nothing
    others = other.exp()
    middle = _middle(own, other, chances, others.clone(), beta)
    return chances.mul_(own - middle).sum(1, keepdim=True), others.mul_(other - middle).sum(1, keepdim=True)


def _slopes(own: torch.Tensor, other: torch.Tensor, of_student: torch.Tensor, beta: float) -> torch.Tensor:
    """[positions, width] d divergence / d logit, in the place of `own`; `other` is used up.

    S - T at beta 0, else (1 - beta) S (log S / M - KL(S | M)), and with T for M and a factor of 1 at beta 1.
    """
    chances = own.exp()
    if beta == 0:
        return torch.sub(chances, other.exp_(), out=own)
    middle = _middle(own, other, chances, None if beta == 1 else other.exp_(), beta)
    return own.sub_(middle).sub_(of_student).mul_(chances).mul_(_shares(beta)[1])


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: Head, ids: torch.Tensor
    ) -> torch.Tensor:
        student = Projection(hidden=hidden, weight=weight, bias=bias, head=head)
        total = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.promote_types(hidden.dtype, torch.float32))
        chosen = total.new_zeros(ids.shape)
        for tile in _tiles(student):
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
        collected = _Gradients(student, ctx.needs_input_grad)
        whole = upstream.sum(1, keepdim=True)
        for tile in _tiles(student):
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


class _Gradients:
    """Adds the tiles' gradients up to those of hidden states, weight and bias."""

    def __init__(self, student: Projection, needed: tuple[bool, ...]) -> None:
        self._student = student
        hidden, weight, bias = student.hidden, student.weight, student.bias
        self._hidden = torch.zeros_like(hidden) if needed[0] else None
        self._weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needed[1] else None
        self._bias = torch.empty_like(bias) if bias is not None and needed[2] else None

    def add(self, tile: slice, delta: torch.Tensor, slope: torch.Tensor | None) -> None:
        """Take the gradient in one tile's capped logits, and the slope of the cap."""
        if slope is not None:
            delta.mul_(slope)
        own = delta.to(self._student.hidden.dtype)
        if self._hidden is not None:
            self._hidden.addmm_(own, self._student.weight[tile])
        if self._weight is not None:
            torch.mm(own.t(), self._student.hidden, out=self._weight[tile])
        if self._bias is not None:
            torch.sum(own, 0, out=self._bias[tile])

    @property
    def taken(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Of hidden, weight and bias."""
        return self._hidden, self._weight, self._bias
