"""Attention over a packed row: each segment attends to itself alone, at the cost of the segments and not of the row's square.

The boundaries come from a `Segments` object that travels beside the tokens, as a keyword argument through transformers' modules;
nothing is inferred from token values or position ids, and no mask of the size [tokens, tokens] is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from agentrl.errors import ConfigError
from agentrl.learner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTENTION = "agentrl_packed"
"""Name under which transformers finds this attention."""

MAX_PAIRS_RATIO = 1.03
"""Segments of nearly equal length share a kernel call, padded to the longest, while that costs at most this share of extra pairs."""

WINDOW_BLOCK = 128
"""Queries of one call in a sliding-window layer. Each block sees window + block - 1 keys, so smaller blocks waste less and call more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Where the segments of a packed row lie, as calls of an attention kernel.

    A kernel sees slots, not tokens: the segments one after the other, longest first, those of one call padded to one length. A token
    that several segments share (a common prompt) is packed once and stands in a slot of each.
    """

    calls: tuple[tuple[int, int], ...]
    """(segments, slots a segment) of each kernel call."""
    gather: torch.Tensor | None
    """[slots] int64: the token in each slot; None where the slots are the tokens as they stand."""
    scatter: torch.Tensor | None
    """[tokens] int64: a slot that holds each token."""
    boundaries: torch.Tensor | None
    """[segments + 1] int32, cumulated lengths, for a kernel that takes ragged segments as they are; then no slot is padding."""
    needed_pairs: int
    """Query-key pairs of causal attention inside the segments."""
    computed_pairs: int
    """The same with the padding of the calls."""
    shared: bool
    """Some token stands in several segments."""

    @staticmethod
    def of(tokens: Sequence[np.ndarray], num_tokens: int, device: torch.device, *, ragged: bool = False) -> Segments:
        """Plan the calls for segments that are given by the packed tokens of each, in order of position.

        With `ragged` the kernel takes segments of any lengths at once, and nothing is padded.
        """
        ordered = sorted(tokens, key=len, reverse=True)
        calls: list[tuple[int, int]] = []
        slots: list[np.ndarray] = []
        scatter = np.empty(num_tokens, dtype=np.int64)
        start = 0
        for segments in _calls([len(segment) for segment in ordered], 1.0 if ragged else MAX_PAIRS_RATIO):
            length = len(ordered[segments.start])
            calls.append((len(segments), length))
            for segment in ordered[segments.start : segments.stop]:
                scatter[segment] = np.arange(start, start + len(segment))
                slots.append(segment)
                if len(segment) < length:  # a later slot of a causal segment changes nothing before it
                    slots.append(np.full(length - len(segment), segment[-1], dtype=np.int64))
                start += length
        gather = np.concatenate(slots)
        as_they_stand = len(gather) == num_tokens and bool((gather == np.arange(num_tokens)).all())
        lengths = [len(segment) for segment in ordered]
        return Segments(
            calls=tuple(calls),
            gather=None if as_they_stand else on_device(gather, device),
            scatter=None if as_they_stand else on_device(scatter, device),
            boundaries=on_device(np.array([0, *np.cumsum(lengths)], dtype=np.int32), device) if ragged else None,
            needed_pairs=sum(map(_pairs, lengths)),
            computed_pairs=sum(segments * _pairs(length) for segments, length in calls),
            shared=sum(lengths) != num_tokens,
        )


def _pairs(length: int) -> int:
    return length * (length + 1) // 2


def _calls(lengths: Sequence[int], max_ratio: float) -> list[range]:
    """Runs of segments, lengths descending, that are computed together."""
    runs: list[range] = []
    start, needed = 0, 0
    for index, length in enumerate(lengths):
        needed += _pairs(length)
        if (index - start + 1) * _pairs(lengths[start]) > max_ratio * needed:
            runs.append(range(start, index))
            start, needed = index, _pairs(length)
    runs.append(range(start, len(lengths)))
    return runs


def takes_ragged(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a kernel for ragged segments here: flash attention, on CUDA from Ampere on, in half precision."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(device) >= (8, 0)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment, in the form in which transformers calls an attention function.

    Args:
        module: the attention layer, asked for its kind only.
        query: [1, heads, tokens, size].
        key: [1, kv_heads, tokens, size].
        value: [1, kv_heads, tokens, size].
        attention_mask: unused; the segments say it all.
        scaling: factor of the scores; 1 / sqrt(size) by default.
        sliding_window: keys that a query sees, itself included; all by default.
        segments: where the segments lie. The model has to pass it through.
        kwargs: what else transformers passes; what would change the scores is refused.

    Returns: [1, tokens, heads, size], and no attention weights. Dropout is never applied.

    Raises `ConfigError` for a layer whose attention is something else.
    """
    if segments is None:
        raise ConfigError(f"{type(module).__name__} does not hand keyword arguments to its attention: packed rows would see each other")
    window = _window(module, sliding_window, kwargs)
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else value.dtype
    query, key, value = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    return attend(query, key, value, segments, scaling, window).unsqueeze(0), None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Causal attention inside each segment: [tokens, heads, size] and [tokens, kv_heads, size] twice -> [tokens, heads, size]."""
    if segments.gather is not None:
        query, key, value = (selected(tensor, segments.gather, shared=segments.shared) for tensor in (query, key, value))
    if segments.boundaries is not None and takes_ragged(query.device, query.dtype) and _fits_flash(query, value):
        out = _ragged(query, key, value, segments.boundaries, segments.calls[0][1], scaling, window)
    else:
        outs, start = [], 0
        for count, length in segments.calls:
            stop = start + count * length
            shape = (count, length, -1, query.shape[-1])
            queries, keys = (tensor[start:stop].reshape(shape).transpose(1, 2) for tensor in (query, key))
            values = value[start:stop].reshape(count, length, -1, value.shape[-1]).transpose(1, 2)
            outs.append(_causal(queries, keys, values, scaling, window).transpose(1, 2).flatten(0, 1))
            start = stop
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
    return out if segments.scatter is None else out.index_select(0, segments.scatter)


def selected(rows: torch.Tensor, places: torch.Tensor, *, shared: bool) -> torch.Tensor:
    """[places, ...]: these rows. `shared` says whether some place may be named more than once.

    On a GPU the gradient of `index_select` adds what such a row gets in no fixed order and rounds each sum to the row's type; that of an
    index sorts first and adds in float32, so that a run can be repeated bit for bit.
    """
    return rows[places] if shared and rows.device.type == "cuda" else rows.index_select(0, places)


def _fits_flash(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether flash attention takes heads of these sizes; others go one call for each length."""
    size = query.shape[-1]
    return size == value.shape[-1] and size % 8 == 0 and size <= 256


def _window(module: torch.nn.Module, sliding_window: int | None, kwargs: dict[str, Any]) -> int | None:
    """The keys that a query of this layer sees; raises `ConfigError` where causal attention is not what the layer does."""
    name = type(module).__name__
    for option in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(option) is not None:
            raise ConfigError(f"{name} uses {option} in its attention, which packed rows do not support")
    if not getattr(module, "is_causal", True):
        raise ConfigError(f"{name} is not causal: it cannot be trained on the tokens that it sampled")
    config, index = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds and index is not None else "full_attention"
    if kind not in ("full_attention", "sliding_attention"):
        raise ConfigError(f"{name} is a {kind} layer, which packed rows do not support; supported: full_attention, sliding_attention")
    if kind == "sliding_attention" and sliding_window is None:
        raise ConfigError(f"{name} is a sliding_attention layer but does not tell its attention function the window")
    return sliding_window


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None) -> torch.Tensor:
    """[segments, heads, length, size] each, all segments of one length -> the same."""
    length = query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    outs = []
    for start in range(0, length, WINDOW_BLOCK):
        stop, first = min(start + WINDOW_BLOCK, length), max(0, start - window + 1)
        queries = torch.arange(start, stop, device=query.device)[:, None]
        keys = torch.arange(first, stop, device=query.device)
        mask = (keys <= queries) & (keys > queries - window)
        block = query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop]
        outs.append(scaled_dot_product_attention(*block, attn_mask=mask, scale=scaling, enable_gqa=grouped))
    return torch.cat(outs, dim=2)


def _ragged(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """[slots, heads, size] each -> the same, in one call of flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    sizes = (-1 if window is None else window - 1, 0)
    # torch 2.13 wants to be told of heads that share keys; the same kernel in 2.11 takes them as they come.
    shared = query.shape[1] != key.shape[1] and "enable_gqa" in signature(varlen_attn).parameters
    more: dict[str, Any] = {"enable_gqa": True} if shared else {}
    out = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, scale=scaling, window_size=sizes, **more)
    assert isinstance(out, torch.Tensor)
    return out


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Stands where transformers would build a [tokens, tokens] mask."""


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
