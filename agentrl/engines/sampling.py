"""Drawing tokens from logits: one pass over a batch, each row from a uniform number of its own.

A draw inverts the cumulative distribution in two levels, blocks and then the tokens of one block, summed in float64: exact for any
vocabulary, without a cumulative sum over all of it. So a row's draw depends on its logits and its number only, never on the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
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


CHUNK = 1 << 18
"""Logits looked at together, so that the passes over them find them in the processor's cache."""


def draw(
    logits: torch.Tensor,
    temperatures: np.ndarray | None,
    greedy: np.ndarray | None,
    uniforms: np.ndarray,
    truncations: Sequence[Truncation] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Sample one token a row.

    Args:
        logits: [rows, vocabulary] float32.
        temperatures: [rows] float32, above 0; None means 1 for all.
        greedy: [rows] bool: take the likeliest token instead; None means none.
        uniforms: [rows] float64 in [0, 1).
        truncations: rows that draw from a part of the vocabulary.

    Returns: ids [rows] int64; log-probs [rows] float32 nats under softmax(logits / temperature) over the whole vocabulary.
    """
    sharpness = None if temperatures is None else torch.from_numpy(1 / temperatures[:, None]).to(logits.device)
    peaks, sums = _survey(logits, sharpness)
    blocks = sums.cpu().numpy()
    log_totals = np.log(blocks.sum(-1))
    parts: dict[int, np.ndarray] = {}
    for truncation in truncations:
        row = slice(truncation.row, truncation.row + 1)
        masses = _truncated(_masses(logits[row], peaks[row], None if sharpness is None else sharpness[row]), truncation)
        blocks[row] = _block_sums(masses).cpu().numpy()
        parts[truncation.row] = masses[0].cpu().numpy()
    ids, above_peak = _invert(logits, peaks, temperatures, blocks, uniforms, parts)
    if greedy is not None:
        ids = np.where(greedy, logits.argmax(-1).cpu().numpy(), ids)
        above_peak = np.where(greedy, 0.0, above_peak)
    return ids, (above_peak - log_totals).astype(np.float32)


def _survey(logits: torch.Tensor, sharpness: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Greatest logit [rows, 1] and sums of the masses of each block [rows, blocks]."""
    rows, vocabulary = logits.shape
    height = max(1, CHUNK // vocabulary)
    peaks, sums = [], []
    for start in range(0, rows, height):
        part = slice(start, start + height)
        peaks.append(logits[part].amax(-1, keepdim=True))
        sums.append(_block_sums(_masses(logits[part], peaks[-1], None if sharpness is None else sharpness[part])))
    return (peaks[0], sums[0]) if len(sums) == 1 else (torch.cat(peaks), torch.cat(sums))


def _masses(logits: torch.Tensor, peaks: torch.Tensor, sharpness: torch.Tensor | None) -> torch.Tensor:
    """Probabilities in units of the greatest one."""
    masses = logits - peaks
    if sharpness is not None:
        masses.mul_(sharpness)
    return masses.exp_()


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


def _invert(
    logits: torch.Tensor,
    peaks: torch.Tensor,
    temperatures: np.ndarray | None,
    blocks: np.ndarray,
    uniforms: np.ndarray,
    parts: dict[int, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Where the cumulative masses pass each row's uniform, and (logit - peak) / temperature there.

    `blocks` are the sums of what each row draws from; `parts` the masses of the rows that do not draw from the whole vocabulary.
    """
    vocabulary = logits.shape[1]
    length = _block_length(vocabulary)
    heights = blocks.cumsum(-1)
    targets = uniforms * heights[:, -1]
    block = _first_above(heights, targets)
    rows = np.arange(len(block))
    inside = block[:, None] * length + np.arange(length)
    beyond = inside >= vocabulary if vocabulary % length else None  # the last block is shorter
    if beyond is not None:
        inside = np.minimum(inside, vocabulary - 1)
    below_peak = (logits.gather(1, torch.from_numpy(inside).to(logits.device)) - peaks).cpu().numpy().astype(np.float64)
    if temperatures is not None:
        below_peak /= temperatures[:, None]
    masses = np.exp(below_peak)
    for row, part in parts.items():
        masses[row] = part[inside[row]]
    if beyond is not None:
        masses[beyond] = 0.0
    place = _first_above(masses.cumsum(-1), targets - (heights - blocks)[rows, block])
    return inside[rows, place], below_peak[rows, place]


def _first_above(heights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[rows] index of the first height above its target. Rounding may put a target past the end: then the last that has any mass."""
    found = (heights <= targets[:, None]).sum(-1)
    last = (heights < heights[:, -1:]).sum(-1)
    result: np.ndarray = np.minimum(found, last)
    return result


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
