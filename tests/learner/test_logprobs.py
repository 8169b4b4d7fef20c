from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agentrl.learner.logprobs import Head, token_logprobs


def naive(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, head: Head
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias) * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    logprobs = torch.log_softmax(logits / head.temperature, -1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def inputs(positions: int, vocabulary: int, dtype: torch.dtype, *, bias: bool) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions * vocabulary)
    hidden = torch.randn(positions, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, 24, generator=generator, dtype=torch.float64)
    shift = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    upstream = torch.randn(positions, generator=generator, dtype=torch.float64)
    tensors = [hidden, weight, shift] if bias else [hidden, weight]
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    return [one.to(dtype).requires_grad_() for one in tensors], targets, upstream.to(dtype)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    positions=st.integers(1, 40),
    vocabulary=st.integers(2, 200),
    tiles=st.floats(0.1, 6),
    temperature=st.sampled_from([0.6, 1.0, 1.3]),
    softcap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.25]),
    bias=st.booleans(),
    double=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_whole_matrix(
    positions: int, vocabulary: int, tiles: float, temperature: float, softcap: float | None, scale: float, bias: bool, double: bool
) -> None:
    dtype, bound = (torch.float64, 1e-12) if double else (torch.float32, 1e-6)
    tensors, targets, upstream = inputs(positions, vocabulary, dtype, bias=bias)
    head = Head(temperature=temperature, scale=scale, softcap=softcap, tile_mib=positions * vocabulary * 4 / 2**20 / tiles)
    shift = tensors[2] if bias else None
    logprobs, entropy, *_ = token_logprobs(tensors[0], tensors[1], shift, targets, head)
    expected, expected_entropy = naive(tensors[0], tensors[1], shift, targets, head)
    torch.testing.assert_close(logprobs, expected, rtol=bound, atol=4 * bound)
    torch.testing.assert_close(entropy, expected_entropy, rtol=10 * bound, atol=20 * bound)
    found = torch.autograd.grad((logprobs * upstream).sum(), tensors)
    right = torch.autograd.grad((expected * upstream).sum(), tensors)
    for one, other in zip(found, right, strict=True):
        assert float((one - other).norm()) <= bound * float(other.norm()) + bound * 1e-3


class Largest(TorchDispatchMode):
    """Records the largest memory that any operation made, in elements of 4 bytes; views of what was there before do not count."""

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.elements = 0.0
        self._before = {one.untyped_storage().data_ptr() for one in before}

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in self._before:
                self.elements = max(self.elements, one.untyped_storage().nbytes() / 4)
        return out


def test_no_tensor_is_larger_than_a_tile_or_the_gradient() -> None:
    (hidden, weight), targets, _ = inputs(300, 1000, torch.float32, bias=False)
    head = Head(tile_mib=0.1)
    with Largest(weight) as largest:
        logprobs, *_ = token_logprobs(hidden, weight, None, targets, head)
        logprobs.sum().backward()
    tile = 0.1 * 2**20 / 4
    assert largest.elements <= max(tile, weight.numel()) < 300 * 1000 / 10


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_one() -> None:
    (hidden, weight), targets, _ = inputs(20, 2000, torch.float32, bias=False)
    weight = weight.detach()
    with Largest(weight) as largest:
        logprobs, *_ = token_logprobs(hidden, weight, None, targets, Head(tile_mib=20 * 100 * 4 / 2**20))
        logprobs.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert largest.elements < weight.numel() / 10


def test_half_precision_is_normalized_in_float32() -> None:
    (hidden, weight), targets, _ = inputs(30, 500, torch.bfloat16, bias=False)
    logprobs, entropy, *_ = token_logprobs(hidden, weight, None, targets, Head())
    expected = torch.log_softmax((hidden @ weight.t()).float(), -1).gather(1, targets[:, None])[:, 0]
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, rtol=1e-6, atol=1e-5)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.full((2, 1), 1e4, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    logprobs, entropy, *_ = token_logprobs(hidden, weight, None, torch.tensor([0, 1]), Head(tile_mib=1e-6))
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -2e4]))
    torch.testing.assert_close(entropy, torch.zeros(2), atol=2e-3, rtol=0)


@pytest.mark.parametrize("tile_mib", [64.0, 1e-4], ids=["one tile", "tiles"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("alone", [True, False], ids=["entropy", "both"])
def test_the_entropy_has_the_gradient_of_its_definition(tile_mib: float, softcap: float | None, alone: bool) -> None:
    leaves, targets, _ = inputs(3, 67, torch.float64, bias=True)
    head = Head(temperature=0.7, scale=1.3, softcap=softcap, tile_mib=tile_mib)
    logprobs, entropy, *_ = token_logprobs(*leaves, targets, head)
    mixed = torch.arange(1.0, 4.0, dtype=torch.float64)
    got = torch.autograd.grad((entropy * mixed).sum() + (0 if alone else logprobs.sum()), leaves)
    hidden, weight, bias = leaves
    logits = (hidden @ weight.t() + bias) * 1.3
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = torch.log_softmax(logits / 0.7, -1)
    wanted = (-(plain.exp() * plain).sum(-1) * mixed).sum() + (0 if alone else plain.gather(1, targets[:, None]).sum())
    for one, other in zip(got, torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
