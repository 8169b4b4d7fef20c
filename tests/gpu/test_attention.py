"""Packed attention on a GPU against each row alone in float64, outputs and gradients."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from gpu_fakes import GPU, gap

from agentrl.learner.attention import Segments, packed_attention, takes_ragged

pytestmark = pytest.mark.gpu

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative L2 distance. A bfloat16 number is off by up to 4e-3, and a gradient is a product of several."""


def apart(*lengths: int) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


ROWS = {
    "ragged": apart(300, 1, 77, 513, 128, 9),
    "equal": apart(64, 64, 64),
    "shared start": [np.arange(90), np.concatenate([np.arange(40), np.arange(90, 200)]), np.arange(25)],
}


def by_definition(query: Any, key: Any, value: Any, rows: list[np.ndarray], window: int | None) -> torch.Tensor:
    """[tokens, heads, size] of [1, heads, tokens, size]; a token of several rows is the same in each."""
    share = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(share, 1) for one in (key, value))
    outs: dict[int, torch.Tensor] = {}
    for row in rows:
        at = torch.from_numpy(row)
        scores = query[0][:, at] @ key[0][:, at].transpose(1, 2) * 0.2
        order = torch.arange(len(row))
        seen = order[None] <= order[:, None]
        if window is not None:
            seen &= order[None] > order[:, None] - window
        out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[0][:, at]
        outs |= {int(place): out[:, index] for index, place in enumerate(row)}
    return torch.stack([outs[place] for place in range(len(outs))])


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 32), (4, 4, 64), (4, 1, 20), (2, 2, 256)])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("case", list(ROWS))
def test_a_pack_is_its_rows_one_by_one(case: str, dtype: torch.dtype, heads: int, kv_heads: int, size: int, window: int | None) -> None:
    rows = ROWS[case]
    tokens = 1 + max(int(row.max()) for row in rows)
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(1, count, tokens, size, generator=draw).to(dtype) for count in (heads, kv_heads, kv_heads)]
    weight = torch.randn(tokens, heads, size, generator=draw)
    right = [one.double().requires_grad_() for one in given]
    expected = by_definition(*right, rows, window)
    expected_grads = torch.autograd.grad((expected * weight.double()).sum(), right)
    device = torch.device(GPU)
    module = torch.nn.Module()
    module.config = types.SimpleNamespace(layer_types=["sliding_attention" if window else "full_attention"])
    module.layer_idx, module.is_causal = 0, True
    for ragged in {False, takes_ragged(device, dtype)}:
        ours = [one.to(device).requires_grad_() for one in given]
        segments = Segments.of(rows, tokens, device, ragged=ragged)
        out, _ = packed_attention(module, *ours, None, scaling=0.2, sliding_window=window, segments=segments)
        found = torch.autograd.grad((out[0].float() * weight.to(device)).sum(), ours)
        assert gap(out[0].double().cpu(), expected) < BOUNDS[dtype]
        for one, other in zip(found, expected_grads, strict=True):
            assert gap(one.double().cpu(), other) < BOUNDS[dtype]


def test_flash_attention_for_ragged_rows_is_there() -> None:
    """Where it is not, packs of bfloat16 rows are computed one length at a time."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("flash attention wants Ampere or newer")
    assert takes_ragged(torch.device(GPU), torch.bfloat16)
    assert not takes_ragged(torch.device(GPU), torch.float32)
