"""Attention over the pools of the KV cache, for requests that decode and for requests that join.

`DecodePart` reads whole slices of a pool; `PrefillPart` pads a few requests of similar length to a rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from agentrl.engines.kv import Pool


STREAMED_BYTES = 16384
"""Of one head's keys. Shorter runs with gaps between them are read at a third of the speed of gapless ones (measured: dim 32, 48 of 64
tokens, AMD Zen 4), so that a little computing on masked positions is the cheaper way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What attention does in one layer, beyond queries, keys and values."""

    scale: float
    window: int | None = None
    """A token sees this many tokens, itself included; None sees all."""
    softcap: float | None = None
    """Scores are squashed to softcap x tanh(scores / softcap)."""
    sinks: torch.Tensor | None = None
    """[query heads] a further score in each softmax that takes part in no sum."""


@dataclass(slots=True, kw_only=True)
class DecodePart:
    """Tokens [start, stop) of the step are the newest of the first rows of a pool, in order."""

    pool: Pool
    start: int
    stop: int
    positions: torch.Tensor
    """[stop - start] int64."""
    shortest: int
    """Least position."""
    longest: int
    _targets: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    _masks: dict[tuple[int, int | None, int, int], torch.Tensor | None] = field(default_factory=dict)

    def targets(self, layer: torch.Tensor) -> torch.Tensor:
        """[tokens x heads x 2] where keys and values go in a layer seen as [2 x rows x heads x capacity, dim]."""
        key = (layer.shape[1], layer.shape[2])
        if key not in self._targets:
            rows = torch.arange(self.stop - self.start, device=self.positions.device)
            self._targets[key] = _targets(rows, self.positions, layer)
        return self._targets[key]

    def mask(self, heads: int, window: int | None, low: int, high: int) -> torch.Tensor | None:
        """[rows x heads, 1, high - low] to add to scores of positions [low, high); None where every request sees all of them."""
        key = (heads, window, low, high)
        if key not in self._masks:
            self._masks[key] = self._make_mask(heads, window, low, high)
        return self._masks[key]

    def _make_mask(self, heads: int, window: int | None, low: int, high: int) -> torch.Tensor | None:
        if self.shortest == high - 1 and (window is None or self.longest - window < low):
            return None
        at = torch.arange(low, high, device=self.positions.device)
        last = self.positions[:, None]
        hidden = at > last
        if window is not None:
            hidden |= at <= last - window
        mask = torch.zeros(hidden.shape, device=self.positions.device, dtype=self.pool.layers[0].dtype).masked_fill_(hidden, -torch.inf)
        return mask.repeat_interleave(heads, 0).unsqueeze(1)

    def _span(self, layer: torch.Tensor, window: int | None) -> tuple[int, int]:
        """Positions [low, high) to read: those that any request sees, or the whole capacity where that is faster."""
        low = 0 if window is None else max(0, self.shortest + 1 - window)
        high = self.longest + 1
        if layer.shape[-1] * layer.itemsize * (high - low) < STREAMED_BYTES and high - low > self.pool.capacity // 2:
            return 0, self.pool.capacity
        return low, high

    def attend(self, layer: torch.Tensor, query: torch.Tensor, new: torch.Tensor, how: Attention) -> torch.Tensor:
        """Attention over the pool; see `Step.attend`."""
        del new
        rows, heads, group, dim = query.shape
        low, high = self._span(layer, how.window)
        past = layer[:, :rows, :, low:high].flatten(1, 2)
        keys, values = past[0], past[1]
        mask = self.mask(heads, how.window, low, high)
        query = query.flatten(0, 1)
        if how.softcap is None and how.sinks is None:
            beta = 0 if mask is None else 1
            scores = torch.baddbmm(query.new_empty(()) if mask is None else mask, query, keys.transpose(1, 2), beta=beta, alpha=how.scale)
            weights = torch.softmax(scores, -1, dtype=torch.float32)
        else:
            scores = torch.bmm(query, keys.transpose(1, 2)).mul_(how.scale)
            weights = _shaped_softmax(scores.view(rows, heads, group, -1), mask, how).flatten(0, 1)
        return torch.bmm(weights.to(values.dtype), values).view(rows, heads, group, dim)


@dataclass(slots=True, kw_only=True)
class PrefillPart:
    """Tokens [start, stop) of the step are the new tokens of requests in one pool, one request after the other."""

    pool: Pool
    start: int
    stop: int
    positions: torch.Tensor
    """[tokens] int64."""
    rows: torch.Tensor
    """[requests] int64, in the pool."""
    token_rows: torch.Tensor
    """[tokens] int64: the pool's row of each token."""
    begins: torch.Tensor
    """[requests] int64: position of each request's first new token."""
    width: int
    """Most new tokens of a request."""
    longest: int
    """Greatest position."""
    fresh: bool
    """Whether no request has anything in the pool before its new tokens."""
    spread: torch.Tensor | None
    """[requests x width] int64: which token of the part fills each cell of the rectangle; None where all have `width` tokens."""
    cells: torch.Tensor | None
    """[tokens] int64: which cell of the rectangle each token has."""
    _targets: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def targets(self, layer: torch.Tensor) -> torch.Tensor:
        """As in `DecodePart`."""
        key = (layer.shape[1], layer.shape[2])
        if key not in self._targets:
            self._targets[key] = _targets(self.token_rows, self.positions, layer)
        return self._targets[key]

    def mask(self, window: int | None) -> torch.Tensor:
        """[requests, 1, width, keys] bool: what each new token sees."""
        if window not in self._masks:
            device = self.positions.device
            at = torch.arange(self.width if self.fresh else self.longest + 1, device=device)
            last = self.begins[:, None, None] + torch.arange(self.width, device=device)[None, :, None]
            seen = at <= last
            if window is not None:
                seen &= at > last - window
            self._masks[window] = seen.unsqueeze(1)
        return self._masks[window]

    def attend(self, layer: torch.Tensor, query: torch.Tensor, new: torch.Tensor, how: Attention) -> torch.Tensor:
        """Attention over the rectangle, and over the pool where requests had a past; see `Step.attend`."""
        _, heads, group, dim = query.shape
        count = len(self.rows)
        queries = self._rectangle(query).view(count, self.width, heads * group, dim).transpose(1, 2)
        if self.fresh:
            keys_values = self._rectangle(new).view(count, self.width, heads, 2, dim)
            keys, values = keys_values[:, :, :, 0].transpose(1, 2), keys_values[:, :, :, 1].transpose(1, 2)
        else:
            past = layer[:, :, :, : self.longest + 1][:, self.rows]
            keys, values = past[0], past[1]
        if group > 1:
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        if how.softcap is None and how.sinks is None:
            causal = self.fresh and (how.window is None or self.width <= how.window)
            mask = None if causal else self.mask(how.window)
            result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, scale=how.scale)
        else:
            scores = torch.matmul(queries, keys.transpose(2, 3)).mul_(how.scale)
            mask = torch.zeros_like(self.mask(how.window), dtype=scores.dtype).masked_fill_(~self.mask(how.window), -torch.inf)
            result = torch.matmul(_shaped_softmax(scores, mask, how).to(values.dtype), values)
        result = result.transpose(1, 2).reshape(count * self.width, heads, group, dim)
        return result if self.cells is None else result[self.cells]

    def _rectangle(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.contiguous() if self.spread is None else tokens[self.spread]


def _targets(rows: torch.Tensor, positions: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    _, all_rows, heads, capacity, _ = layer.shape
    of_key = (rows[:, None] * heads + torch.arange(heads, device=rows.device)) * capacity + positions[:, None]
    return torch.stack([of_key, of_key + all_rows * heads * capacity], -1).reshape(-1)


def _shaped_softmax(scores: torch.Tensor, mask: torch.Tensor | None, how: Attention) -> torch.Tensor:
    """Softmax over [requests, heads, queries, keys] scores with soft cap, mask and sinks, in float32."""
    scores = scores.float()
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    if mask is not None:
        scores = scores + mask.view(scores.shape[0], -1, *mask.shape[-2:])
    if how.sinks is None:
        return torch.softmax(scores, -1)
    if scores.shape[1] * scores.shape[2] == len(how.sinks):  # decoding: [kv heads, queries per kv head]
        sinks = how.sinks.float().view(scores.shape[1], scores.shape[2], 1)
    else:
        sinks = how.sinks.float().view(-1, 1, 1)
    sink_column = sinks.expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink_column], -1), -1)[..., :-1]
