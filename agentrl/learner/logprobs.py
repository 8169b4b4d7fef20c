"""Log-probs of chosen tokens out of hidden states, without the [positions, vocabulary] matrix.

Logits exist for one tile of the vocabulary at a time, forward and backward: the forward pass keeps hidden states and the log of each
position's normalizer, and the backward pass computes the tiles again. Tiles cut the vocabulary and not the positions because then the
head's weight is read, and its gradient written, once a pass: with 262,144 words that is most of the memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What turns a head's raw products into the logits of the sampled distribution."""

    temperature: float = 1.0
    scale: float = 1.0
    """Factor on the products (Cohere, Granite)."""
    softcap: float | None = None
    """c in c * tanh(logits / c) (Gemma 2)."""
    tile_mib: float = 64.0
    """Memory of one tile of logits in float32."""

    def tiles(self, positions: int, vocabulary: int) -> Iterator[slice]:
        """Slices of the vocabulary whose logits fit the memory, at least 16 words each."""
        width = max(16, int(self.tile_mib * 2**20) // (4 * max(1, positions)))
        for start in range(0, vocabulary, width):
            yield slice(start, min(start + width, vocabulary))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted beside log-probs and entropies."""

    mean_logits: bool = False
    collision: bool = False
    uniform: bool = False
    """The mean over the vocabulary of log-probs (smoothing.py)."""


class TokenScores(NamedTuple):
    """[positions] each; the first two are differentiable."""

    logprobs: torch.Tensor
    """Nats."""
    entropy: torch.Tensor
    """Nats."""
    correct: torch.Tensor
    """Bool: no token is more likely than the target."""
    mean_logits: torch.Tensor | None
    """Over the vocabulary, before the temperature."""
    collision: torch.Tensor | None
    """log sum p^2: of the chance that two draws are equal."""


def token_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, head: Head, asked: Asked | None = None
) -> TokenScores:
    """Log-softmax at the targets, the entropy of each distribution, and what is asked for beside them.

    Args:
        hidden: [positions, size], float64, float32 or a half type; the products are computed in its type.
        weight: [vocabulary, size], of the same type.
        bias: [vocabulary] or None.
        targets: [positions] int64.
        head: temperature, scale, softcap and the size of a tile.
        asked: what else is wanted.

    Returns: log-probs and entropies differentiable in hidden, weight and bias, and all of it in float32 or better, whatever the type of
    `hidden`.
    """
    asked = asked or Asked()
    found = _TokenLogprobs.apply(hidden, weight, bias, targets, head, asked)  # type: ignore[no-untyped-call]
    logprobs, entropy, correct, means, collision = found
    return TokenScores(logprobs, entropy, correct, means if asked.mean_logits else None, collision if asked.collision else None)


def logits_of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: Head) -> torch.Tensor:
    """One tile's logits before the temperature, [positions, width] in float32 or better."""
    products = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
    logits = products.to(torch.promote_types(products.dtype, torch.float32))
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, head: Head, asked: Asked
    ) -> tuple[torch.Tensor, ...]:
        positions, vocabulary = len(hidden), len(weight)
        tiles = list(head.tiles(positions, vocabulary))
        largest = hidden.new_full((positions, 1), -torch.inf, dtype=torch.promote_types(hidden.dtype, torch.float32))
        total, moment, chosen, added, squares = (torch.zeros_like(largest) for _ in range(5))
        # A single tile is within the memory that one may take: it stays, and spares the backward pass the largest product.
        keep = len(tiles) == 1 and head.softcap is None and ctx.needs_input_grad[0]
        kept = None
        for tile in tiles:
            logits = logits_of(hidden, weight[tile], None if bias is None else bias[tile], head)
            if asked.mean_logits:
                added = added + logits.sum(1, keepdim=True)
            if head.temperature != 1.0:
                logits.div_(head.temperature)
            inside = ((targets >= tile.start) & (targets < tile.stop))[:, None]
            picked = logits.gather(1, (targets[:, None] - tile.start).clamp(0, tile.stop - tile.start - 1))
            chosen = torch.where(inside, picked, chosen)
            before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
            shrink = (before - largest).exp_()
            terms = (logits - largest).exp_()
            total = total * shrink + terms.sum(1, keepdim=True)
            moment = moment * shrink + logits.mul_(terms).sum(1, keepdim=True)
            if asked.collision:
                squares = squares * shrink.square() + terms.square().sum(1, keepdim=True)
            kept = terms if keep else None
            del terms, logits  # one tile at a time
        normalizer = largest + total.log()
        entropy = normalizer - moment / total
        ctx.head, ctx.tiles = head, tiles
        ctx.set_materialize_grads(False)  # most losses use no entropy, and its slope costs a pass over the tiles
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer, entropy, kept, total if keep else None)
        correct, collision = chosen >= largest, squares.log() - 2 * total.log()
        more = (correct.squeeze(1), added.squeeze(1) / vocabulary, collision.squeeze(1))
        ctx.mark_non_differentiable(*more)
        return chosen.squeeze(1) - normalizer.squeeze(1), entropy.squeeze(1), *more

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalizer, entropy, kept, total = ctx.saved_tensors
        head = ctx.head
        slopes = [None if grad is None else grad[:, None] * (head.scale / head.temperature) for grad in grads[:2]]
        upstream = normalizer.new_zeros(normalizer.shape) if slopes[0] is None else slopes[0]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # summed over the tiles in float32: in a half type each tile would round the sum
        grad_hidden = torch.zeros_like(hidden, dtype=normalizer.dtype) if needs_hidden else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for tile in ctx.tiles:
            if kept is not None:
                chances, slope = kept / total if slopes[1] is not None else kept, None
                delta = kept * (-upstream / total)
            else:
                chances, slope = _probabilities(hidden, weight[tile], None if bias is None else bias[tile], normalizer, head)
                delta = chances * -upstream if slopes[1] is not None else chances.mul_(-upstream)
            if slopes[1] is not None:  # d entropy / d logit = -p (log p + entropy)
                delta.addcmul_(torch.special.entr(chances) - chances * entropy, slopes[1])
            places = targets[:, None] - tile.start
            inside = (places >= 0) & (places < delta.shape[1])
            delta.scatter_add_(1, places.clamp(0, delta.shape[1] - 1), torch.where(inside, upstream, 0.0))
            if slope is not None:
                delta.mul_(slope)
            delta = delta.to(hidden.dtype)
            if grad_hidden is not None:
                if grad_hidden.dtype == delta.dtype:
                    grad_hidden.addmm_(delta, weight[tile])
                else:
                    grad_hidden.add_(delta @ weight[tile])
            if grad_weight is not None:
                torch.mm(delta.t(), hidden, out=grad_weight[tile])
            if grad_bias is not None:
                torch.sum(delta, 0, out=grad_bias[tile])
            del delta, chances, slope  # one tile at a time
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


def _probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, normalizer: torch.Tensor, head: Head
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One tile's probabilities, [positions, width], and the slope of the soft cap there."""
    logits = logits_of(hidden, weight, bias, head)
    slope = None if head.softcap is None else (logits / head.softcap).square_().neg_().add_(1.0)
    if head.temperature != 1.0:
        logits.div_(head.temperature)
    return logits.sub_(normalizer).exp_(), slope
