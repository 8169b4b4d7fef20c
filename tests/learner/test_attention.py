from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.learner.attention import MAX_PAIRS_RATIO, WINDOW_BLOCK, Segments, packed_attention

CPU = torch.device("cpu")


def layer(kind: str = "full_attention", *, causal: bool = True) -> torch.nn.Module:
    module = torch.nn.Module()
    module.config = types.SimpleNamespace(layer_types=[kind])
    module.layer_idx, module.is_causal = 0, causal
    return module


def tensors(tokens: int, *, heads: int = 4, kv_heads: int = 2, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(heads, size), (kv_heads, size), (kv_heads, size)]
    made = [torch.randn(1, tokens, *shape, generator=generator, dtype=torch.float64).transpose(1, 2) for shape in shapes]
    return [one.detach().requires_grad_() for one in made]


def by_definition(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: list[np.ndarray], window: int | None) -> torch.Tensor:
    """[tokens, heads, size]: one row, one head and one query at a time, softmax over the keys that it may see."""
    out = torch.zeros(query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype)
    share = query.shape[1] // key.shape[1]
    for row in rows:
        for head in range(query.shape[1]):
            for place in range(len(row)):
                seen = row[max(0, place - window + 1) if window else 0 : place + 1]
                scores = key[0, head // share, seen] @ query[0, head, row[place]] * 0.3
                out[row[place], head] = torch.softmax(scores, 0) @ value[0, head // share, seen]
    return out


def apart(*lengths: int) -> tuple[list[np.ndarray], int]:
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)], int(ends[-1])


CASES = {
    "equal": apart(5, 5, 5),
    "ragged": apart(3, 9, 1, 4),
    "nearly equal": apart(79, 80, 80, 2),
    "shared start": ([np.arange(6), np.array([0, 1, 2, 6, 7]), np.array([0, 1, 2, 6, 8, 9])], 10),
    "one inside the other": ([np.arange(6), np.arange(4), np.array([6])], 7),
}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_each_segment_attends_to_itself_alone(case: str, window: int | None) -> None:
    rows, tokens = CASES[case]
    query, key, value = tensors(tokens)
    expected = by_definition(query, key, value, rows, window)
    for ragged in (False, True):
        segments = Segments.of(rows, tokens, CPU, ragged=ragged)
        kind = "sliding_attention" if window else "full_attention"
        out, weights = packed_attention(layer(kind), query, key, value, None, scaling=0.3, sliding_window=window, segments=segments)
        assert weights is None
        torch.testing.assert_close(out[0], expected, rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_shared_tokens_and_padding() -> None:
    rows, tokens = apart(79, 80)[0] + [np.concatenate([np.arange(40), [159, 160]])], 161
    query, key, value = tensors(tokens)
    weight = torch.randn(tokens, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((by_definition(query, key, value, rows, None) * weight).sum(), (query, key, value))
    segments = Segments.of(rows, tokens, CPU)
    assert len(segments.calls) < len(rows)
    out, _ = packed_attention(layer(), query, key, value, None, scaling=0.3, segments=segments)
    for found, right in zip(torch.autograd.grad((out[0] * weight).sum(), (query, key, value)), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("window", [1, WINDOW_BLOCK - 1, WINDOW_BLOCK + 5])
def test_a_window_is_right_across_the_blocks_of_a_long_segment(window: int) -> None:
    rows, tokens = apart(2 * WINDOW_BLOCK + 40)
    query, key, value = tensors(tokens, heads=2, kv_heads=1, size=4)
    expected = by_definition(query, key, value, rows, window)
    segments = Segments.of(rows, tokens, CPU)
    out, _ = packed_attention(layer("sliding_attention"), query, key, value, None, scaling=0.3, sliding_window=window, segments=segments)
    torch.testing.assert_close(out[0], expected, rtol=1e-12, atol=1e-12)


def test_equal_segments_take_one_call_and_no_copy() -> None:
    segments = Segments.of(*apart(*[80] * 16), CPU)
    assert segments.calls == ((16, 80),)
    assert segments.gather is None


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_the_pairs_computed_stay_near_those_needed(lengths: list[int]) -> None:
    segments = Segments.of(*apart(*lengths), CPU)
    assert segments.needed_pairs == sum(length * (length + 1) // 2 for length in lengths)
    assert segments.needed_pairs <= segments.computed_pairs <= MAX_PAIRS_RATIO * segments.needed_pairs
    ragged = Segments.of(*apart(*lengths), CPU, ragged=True)
    assert ragged.computed_pairs == ragged.needed_pairs


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (layer(), {"segments": None}, "does not hand keyword arguments"),
        (layer(), {"softcap": 30.0}, "softcap"),
        (layer(), {"s_aux": torch.zeros(4)}, "s_aux"),
        (layer(causal=False), {}, "not causal"),
        (layer("chunked_attention"), {}, "chunked_attention"),
        (layer("sliding_attention"), {}, "does not tell its attention function the window"),
    ],
)
def test_layers_that_do_something_else_are_refused(module: torch.nn.Module, options: dict[str, object], words: str) -> None:
    query, key, value = tensors(4)
    given_options = {"segments": Segments.of(*apart(4), CPU)} | options
    with pytest.raises(ConfigError, match=words):
        packed_attention(module, query, key, value, None, **given_options)  # type: ignore[arg-type]
