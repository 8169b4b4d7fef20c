"""Attention over the pools of the KV cache, for requests that decode and for requests that join.

`DecodePart` reads whole slices of a pool; `PrefillPart` pads a few requests of similar length to a rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from agentrl.engines.kv import Pool


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
    _targets: dict[int, torch.Tensor] = field(default_factory=dict)
    _masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)

    def targets(self, heads: int) -> torch.Tensor:
        """[tokens x heads x 2] where keys and values go in a layer seen as [rows x heads x 2 x capacity, dim]."""
        if heads not in self._targets:
            rows = torch.arange(self.stop - self.start, device=self.positions.device)
            self._targets[heads] = _targets(rows, self.positions, heads, self.pool.capacity)
        return self._targets[heads]

    def mask(self, heads: int, window: int | None) -> torch.Tensor | None:
        """[rows x heads, 1, high - low] to add to scores; None where every request sees everything."""
        key = (heads, window)
        if key not in self._masks:
            self._masks[key] = self._make_mask(heads, window)
        return self._masks[key]

    def _make_mask(self, heads: int, window: int | None) -> torch.Tensor | None:
        low = self.low(window)
        if self.shortest == self.longest:  # then `low` is the window's edge of all
            return None
        at = torch.arange(low, self.longest + 1, device=self.positions.device)
        last = self.positions[:, None]
        hidden = at > last
        if window is not None:
            hidden |= at <= last - window
        mask = torch.zeros(hidden.shape, device=self.positions.device, dtype=self.pool.layers[0].dtype).masked_fill_(hidden, -torch.inf)
        return mask.repeat_interleave(heads, 0).unsqueeze(1)

    def low(self, window: int | None) -> int:
        """First position that any request sees."""
        return 0 if window is None else max(0, self.shortest + 1 - window)

    def attend(self, layer: torch.Tensor, query: torch.Tensor, new: torch.Tensor, how: Attention) -> torch.Tensor:
        """Attention over the pool; see `attend`."""
        del new
        rows, heads, group, dim = query.shape
        past = layer[:rows, :, :, self.low(how.window) : self.longest + 1]
        keys, values = past[:, :, 0].flatten(0, 1), past[:, :, 1].flatten(0, 1)
        mask = self.mask(heads, how.window)
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
    _targets: dict[int, torch.Tensor] = field(default_factory=dict)
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def targets(self, heads: int) -> torch.Tensor:
        """As in `DecodePart`."""
        if heads not in self._targets:
            self._targets[heads] = _targets(self.token_rows, self.positions, heads, self.pool.capacity)
        return self._targets[heads]

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
        """Attention over the rectangle, and over the pool where requests had a past; see `attend`."""
        tokens, heads, group, dim = query.shape
        count = len(self.rows)
        queries = self._rectangle(query).view(count, self.width, heads * group, dim).transpose(1, 2)
        if self.fresh:
            keys_values = self._rectangle(new).view(count, self.width, heads, 2, dim)
            keys, values = keys_values[:, :, :, 0].transpose(1, 2), keys_values[:, :, :, 1].transpose(1, 2)
        else:
            past = layer[:, :, :, : self.longest + 1][self.rows]
            keys, values = past[:, :, 0], past[:, :, 1]
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


def _targets(rows: torch.Tensor, positions: torch.Tensor, heads: int, capacity: int) -> torch.Tensor:
    lanes = torch.arange(2 * heads, device=rows.device)
    return ((rows[:, None] * (2 * heads) + lanes) * capacity + positions[:, None]).reshape(-1)


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
