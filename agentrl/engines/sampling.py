"""Drawing tokens from logits: one pass over a batch, each row from a uniform number of its own.

A draw inverts the cumulative distribution in two levels, blocks and then the tokens of one block, summed in float64: exact for any
vocabulary, without a cumulative sum over all of it. So a row's draw depends on its logits and its number only, never on the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """Which part of the vocabulary a row may draw from; `min_p` applies first, then `top_k`, then `top_p` of what is left."""

    row: int
    top_p: float
    top_k: int
    min_p: float


def draw(
    logits: torch.Tensor,
    temperatures: torch.Tensor | None,
    greedy: torch.Tensor | None,
    uniforms: torch.Tensor,
    truncations: Sequence[Truncation] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token a row.

    Args:
        logits: [rows, vocabulary] float32; overwritten.
        temperatures: [rows] float32, above 0; None means 1 for all.
        greedy: [rows] bool: take the likeliest token instead; None means none.
        uniforms: [rows] float64 in [0, 1).
        truncations: rows that draw from a part of the vocabulary.

    Returns: ids [rows] int64; log-probs [rows] float32 nats under softmax(logits / temperature) over the whole vocabulary.
    """
    if temperatures is not None:
        logits.div_(temperatures[:, None])
    peak = logits.amax(-1, keepdim=True)
    masses = torch.sub(logits, peak).exp_()
    blocks = _block_sums(masses)
    log_total = blocks.sum(-1).log()
    for truncation in truncations:
        row = slice(truncation.row, truncation.row + 1)
        masses[row] = _truncated(masses[row], truncation)
        blocks[row] = _block_sums(masses[row])
    ids = _invert(masses, blocks, uniforms)
    if greedy is not None:
        ids = torch.where(greedy, logits.argmax(-1), ids)
    chosen = logits.gather(1, ids[:, None]).sub_(peak).squeeze(1)
    return ids, (chosen.double() - log_total).float()


def _block_length(vocabulary: int) -> int:
    return 1 << max(4, round(math.log2(vocabulary) / 2))


def _block_sums(masses: torch.Tensor) -> torch.Tensor:
    """[rows, vocabulary] float32 -> [rows, blocks] float64; the last block may be shorter."""
    vocabulary = masses.shape[1]
    length = _block_length(vocabulary)
    whole = vocabulary // length * length
    sums: torch.Tensor = masses[:, :whole].unflatten(1, (-1, length)).sum(-1, dtype=torch.float64)
    if whole == vocabulary:
        return sums
    return torch.cat([sums, masses[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], 1)


def _invert(masses: torch.Tensor, blocks: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    vocabulary = masses.shape[1]
    length = _block_length(vocabulary)
    heights = blocks.cumsum(-1)
    targets = uniforms * heights[:, -1]
    block = _first_above(heights, targets)
    below = (heights - blocks).gather(1, block[:, None]).squeeze(1)
    inside = block[:, None] * length + torch.arange(length, device=masses.device)
    if vocabulary % length:  # the last block is shorter
        steps = masses.gather(1, inside.clamp(max=vocabulary - 1)).masked_fill_(inside >= vocabulary, 0.0)
    else:
        steps = masses.gather(1, inside)
    steps = steps.cumsum(-1, dtype=torch.float64)
    return block * length + _first_above(steps, targets - below)


def _first_above(heights: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[rows] index of the first height above its target. Rounding may put a target past the end: then the last that has any mass."""
    found = (heights <= targets[:, None]).sum(-1)
    last = (heights < heights[:, -1:]).sum(-1)
    return torch.minimum(found, last)


def _truncated(masses: torch.Tensor, how: Truncation) -> torch.Tensor:
    """[1, vocabulary] masses, the likeliest 1, with those outside the truncation set to 0."""
    values, order = masses.sort(dim=-1, descending=True, stable=True)
    kept = values >= how.min_p
    if how.top_k:
        kept[:, how.top_k :] = False
    values = values * kept
    if how.top_p < 1:
        shares = values.double() / values.sum(-1, dtype=torch.float64)
        values = values * (shares.cumsum(-1) - shares < how.top_p)
    return torch.zeros_like(masses).scatter_(1, order, values)
