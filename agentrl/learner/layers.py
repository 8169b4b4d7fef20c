"""Decoder layers of Llama-like models in few operations, forward and backward, for a CPU.

transformers writes a layer as some sixty operations with twice as many in the backward pass; on a small model these, and not the matrix
products, take half of a step. Here queries, keys and values are one product, gate and up projections are another, and all between the
products is done in place or in one pass. A layer is replaced only where it computes the same as ours on random input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from agentrl.learner.attention import Segments, attend
from agentrl.learner.fused import norm_backward, rms_scale
from agentrl.products import linear

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DIFFERENCE = 1e-5
"""Of outputs of about 1, in float32; another formula differs by far more."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the operations of a layer need to know beside its parameters."""

    heads: int
    kv_heads: int
    dim: int
    eps: float
    order: torch.Tensor
    """[(heads + kv_heads) x dim] rows of the query and key matrices such that the two halves of each rotated pair lie side by side; the
    scores of attention do not depend on the order."""
    back: torch.Tensor
    """The inverse of `order`."""


def replace_layers(model: torch.nn.Module) -> int:
    """Replace the forward pass of every layer that computes what ours does, in place; returns how many were replaced.

    Called without `segments`, or with anything else that ours does not know, a replaced layer does what it did before.
    """
    rotary = next((module for name, module in model.named_modules() if name.endswith("rotary_emb")), None)
    layers = [module for module in model.modules() if _looks_like_one(module)]
    if rotary is None or not layers:
        return 0
    replaced = 0
    for layer in layers:
        shape = _shape(layer)
        before = layer.forward

        def forward(
            hidden_states: torch.Tensor, *args: Any, layer: Any = layer, shape: Shape = shape, before: Any = before, **kwargs: Any
        ) -> Any:
            segments, position_embeddings = kwargs.get("segments"), kwargs.get("position_embeddings")
            if args or segments is None or position_embeddings is None or kwargs.get("use_cache"):
                return before(hidden_states, *args, **kwargs)
            return _layer(layer, shape, hidden_states, position_embeddings, segments)

        if _same(layer, forward, rotary):
            layer.forward = forward
            replaced += 1
    return replaced


def _looks_like_one(module: Any) -> bool:
    """Whether the parts are those of a Llama-like layer; whether it computes the same is found out by `_same`."""
    names = {name for name, _ in module.named_children()}
    if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return False
    attention, mlp = dict(module.self_attn.named_children()), dict(module.mlp.named_children())
    if not set(LINEARS) <= set(attention) <= {*LINEARS, "q_norm", "k_norm"} or not set(GATED) <= set(mlp) <= {*GATED, "act_fn"}:
        return False
    linears = [attention[name] for name in LINEARS] + [mlp[name] for name in GATED]
    plain = all(type(linear) is torch.nn.Linear for linear in linears) and all(mlp[name].bias is None for name in GATED)
    norms = (module.input_layernorm, module.post_attention_layernorm)
    config = getattr(module.self_attn, "config", None)
    windowed = getattr(module.self_attn, "sliding_window", None) or getattr(config, "sliding_window", None)
    known = isinstance(getattr(module.self_attn, "head_dim", None), int) and all(hasattr(norm, "variance_epsilon") for norm in norms)
    return plain and known and not windowed and attention["o_proj"].bias is None and ("q_norm" in attention) == ("k_norm" in attention)


def _shape(layer: Any) -> Shape:
    attention = layer.self_attn
    dim = attention.head_dim
    heads, kv_heads = attention.q_proj.out_features // dim, attention.k_proj.out_features // dim
    pairs = torch.arange(dim).view(2, dim // 2).t().reshape(-1)
    order = (torch.arange(heads + kv_heads)[:, None] * dim + pairs).reshape(-1)
    return Shape(
        heads=heads, kv_heads=kv_heads, dim=dim, eps=layer.input_layernorm.variance_epsilon, order=order, back=torch.argsort(order)
    )


def _layer(
    layer: Any, shape: Shape, hidden_states: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor], segments: Segments
) -> torch.Tensor:
    """[1, tokens, size] -> the same."""
    attention, mlp, half = layer.self_attn, layer.mlp, shape.dim // 2
    hidden = hidden_states[0]
    turns = torch.complex(cos_sin[0][0, :, None, :half], cos_sin[1][0, :, None, :half])
    query_norm, key_norm = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else (None, None)
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = _Project.apply(  # type: ignore[no-untyped-call]
        hidden,
        turns,
        shape,
        layer.input_layernorm.weight,
        query_norm,
        key_norm,
        *(linear.weight for linear in linears),
        *(linear.bias for linear in linears),
    )
    attended = attend(query, key, value, segments, attention.scaling, None).flatten(1)
    out: torch.Tensor = _Finish.apply(  # type: ignore[no-untyped-call]
        hidden,
        attended,
        layer.post_attention_layernorm.weight,
        attention.o_proj.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
        shape.eps,
    )
    return out[None]


@torch.no_grad()
def _same(layer: Any, forward: Callable[..., torch.Tensor], rotary: Any) -> bool:
    weight = layer.self_attn.q_proj.weight
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 7, weight.shape[1], generator=random, dtype=weight.dtype)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    arrays = [positions.new_tensor(places).numpy() for places in ((0, 1, 2, 3), (4, 5, 6))]
    try:
        inputs = {
            "attention_mask": None,
            "position_ids": positions,
            "position_embeddings": rotary(hidden, positions),
            "segments": Segments.of(arrays, 7, hidden.device),
        }
        expected, ours = layer(hidden, **inputs), forward(hidden, **inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):  # it wants or gives something else
        return False
    if not isinstance(expected, torch.Tensor) or expected.shape != ours.shape:
        return False
    return float((ours - expected).abs().max()) <= MAX_DIFFERENCE * float(expected.abs().max())


class _Project(torch.autograd.Function):
    """Norm, the three projections, norms of queries and keys, rotation."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        turns: torch.Tensor,
        shape: Shape,
        norm: torch.Tensor,
        query_norm: torch.Tensor | None,
        key_norm: torch.Tensor | None,
        *linears: Any,
    ) -> tuple[torch.Tensor, ...]:
        weights, biases = linears[:3], linears[3:]
        scale = rms_scale(hidden, shape.eps)
        normed = (hidden * scale).mul_(norm)
        matrix = _in_pairs(torch.cat(weights), shape.order)
        bias = None if biases[0] is None else _in_pairs(torch.cat(biases), shape.order)
        fused = linear(normed, matrix, bias).view(len(hidden), -1, shape.dim)
        turned = fused[:, : shape.heads + shape.kv_heads]
        head_scale = factor = head_normed = None
        if query_norm is not None and key_norm is not None:
            factor = _by_head(query_norm, key_norm, shape)
            head_scale = rms_scale(turned, shape.eps)
            head_normed = turned * head_scale
            turned.copy_(head_normed).mul_(factor)
        pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)))
        pairs.mul_(turns)
        ctx.shape = shape
        ctx.save_for_backward(hidden, scale, normed, norm, turns, matrix, head_scale, head_normed, factor)
        return turned[:, : shape.heads], turned[:, shape.heads :], fused[:, shape.heads + shape.kv_heads :]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, scale, normed, norm, turns, matrix, head_scale, head_normed, factor = ctx.saved_tensors
        shape: Shape = ctx.shape
        split = shape.heads + shape.kv_heads
        grad = torch.cat(grads, dim=1)
        turned = grad[:, :split]
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(turns.conj())
        grad_query_norm = grad_key_norm = None
        if factor is not None:
            by_head = torch.empty_like(factor)
            turned.copy_(norm_backward(turned.contiguous(), head_normed, head_scale, factor, by_head))
            by_head = by_head.index_select(1, shape.back[: shape.dim])
            grad_query_norm, grad_key_norm = by_head[: shape.heads].sum(0), by_head[shape.heads :].sum(0)
        flat = grad.flatten(1)
        rows = [shape.heads * shape.dim, shape.kv_heads * shape.dim, shape.kv_heads * shape.dim]
        grad_weights = _in_pairs(flat.t() @ normed, shape.back).split(rows)
        has_bias = ctx.needs_input_grad[9]
        grad_biases = _in_pairs(flat.sum(0), shape.back).split(rows) if has_bias else (None, None, None)
        grad_norm = torch.empty_like(norm)
        grad_hidden = norm_backward(linear(flat, matrix.t()), hidden * scale, scale, norm, grad_norm)
        return grad_hidden, None, None, grad_norm, grad_query_norm, grad_key_norm, *grad_weights, *grad_biases


class _Finish(torch.autograd.Function):
    """Output projection, residual, norm, gated MLP with SiLU, residual."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        attended: torch.Tensor,
        norm: torch.Tensor,
        output: torch.Tensor,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        middle = linear(attended, output).add_(hidden)
        scale = rms_scale(middle, eps)
        normed = (middle * scale).mul_(norm)
        gates, ups = linear(normed, gate), linear(normed, up)
        inner = F.silu(gates).mul_(ups)
        ctx.save_for_backward(attended, norm, output, gate, up, down, middle, scale, normed, gates, ups, inner)
        return linear(inner, down).add_(middle)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        attended, norm, output, gate, up, down, middle, scale, normed, gates, ups, inner = ctx.saved_tensors
        grad = grads[0]
        grad_down = grad.t() @ inner
        grad_inner = linear(grad, down.t())
        grad_ups = F.silu(gates).mul_(grad_inner)
        grad_gates = torch.ops.aten.silu_backward(grad_inner.mul_(ups), gates)
        grad_gate, grad_up = grad_gates.t() @ normed, grad_ups.t() @ normed
        grad_normed = linear(grad_gates, gate.t()).add_(linear(grad_ups, up.t()))
        grad_norm = torch.empty_like(norm)
        grad_middle = norm_backward(grad_normed, middle * scale, scale, norm, grad_norm).add_(grad)
        grad_output = grad_middle.t() @ attended
        return grad_middle, linear(grad_middle, output.t()), grad_norm, grad_output, grad_gate, grad_up, grad_down, None


def _in_pairs(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys in another order; those of the values stay."""
    return torch.cat([rows[: len(order)].index_select(0, order), rows[len(order) :]])


def _by_head(query_norm: torch.Tensor, key_norm: torch.Tensor, shape: Shape) -> torch.Tensor:
    """[heads + kv_heads, dim]: the norms' weights, paired."""
    pairs = shape.order[: shape.dim]
    query, key = query_norm.index_select(0, pairs), key_norm.index_select(0, pairs)
    return torch.cat([query.expand(shape.heads, -1), key.expand(shape.kv_heads, -1)])
