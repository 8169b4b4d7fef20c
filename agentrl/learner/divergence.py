"""How far a teacher's distributions are from the student's, without a [positions, vocabulary] matrix.

The generalized Jensen-Shannon divergence of Agarwal et al. 2024, arXiv:2306.13649, eq. 1, of student S and teacher T:

    beta 0      KL(T | S)
    beta 1      KL(S | T)
    between     beta KL(T | M) + (1 - beta) KL(S | M),  M = (1 - beta) S + beta T

Logits of both exist for one tile of the vocabulary at a time, forward and backward, as in `agentrl.learner.logprobs`. A first pass finds
both normalizers, a second adds the divergence up; the backward pass computes the tiles again. The teacher gets no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from agentrl.learner.projection import Gradients, Projection
from agentrl.learner.top_tokens import TopTokens, bucketed, chosen_logprobs

if TYPE_CHECKING:
    from agentrl.learner.logprobs import Head


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
        tiles, kept = list(student.tiles), None
        if len(tiles) == 1:  # within the memory that a tile may take: its slope stays, and spares the backward pass both products
            own, other = student.logits(tiles[0]), teacher.logits(tiles[0])
            mine, theirs = (one.logsumexp(1, keepdim=True) for one in (own, other))
            of_student, of_teacher = _sums(own.sub_(mine), other.sub_(theirs), beta)
            if any(ctx.needs_input_grad[:3]) and head.softcap is None:
                kept = _slopes(own, other, of_student, beta)
        else:
            mine, theirs = student.normalizer(), teacher.normalizer()
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
        collected = Gradients(student, ctx.needs_input_grad)
        for tile in student.tiles:
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
