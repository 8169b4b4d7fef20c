"""The fast path: the forward pass of Llama-like models as few, fused operations.

Queries, keys and values come out of one matrix product, in the order [kv head][its queries, its key, its value], with the two halves
of each rotated pair adjacent, so that the rotation is one complex product and the cache takes key and value in one write. Gate and up
projections are one product too. All of it is a permutation of rows: weights are written and read back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from agentrl.engines.attention import Attention
from agentrl.engines.families import Unsupported, activation, family_of
from agentrl.engines.kv import LayerShape
from agentrl.engines.weights import Binding, Weights
from agentrl.products import onednn_product

if TYPE_CHECKING:
    from agentrl.engines.step import Step


LARGE_WEIGHT = 1 << 19
"""Numbers in a matrix from which on oneDNN multiplies faster than MKL, by 1.1 to 1.6 (measured: float32, AMD Zen 4, 1 to 128 rows)."""


@dataclass(slots=True, kw_only=True)
class Layer:
    """Tensors of one layer; matrices lie as [out, in]."""

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    gate_up: torch.Tensor
    down: torch.Tensor
    norms: dict[str, torch.Tensor]
    """As in the `state_dict`, by the last part of the name."""
    factors: dict[str, torch.Tensor]
    """What normalized values are multiplied by, from `norms`; `qk` is [queries per kv head + 1, dim]."""
    attention: Attention
    rotation: str
    """Which table of rotations."""


class FastDecoder:
    """A forward pass without modules. Copies the weights of `model`, which may then be dropped.

    Raises `Unsupported` for a model that is none of `families.FAMILIES` or has an option that is not handled here.
    """

    def __init__(self, model: Any, context_length: int) -> None:
        config = model.config
        self._family = family_of(config)
        self.vocab_size: int = model.lm_head.weight.shape[0]
        self._heads: int = config.num_key_value_heads
        self._group: int = config.num_attention_heads // config.num_key_value_heads
        self._dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps: float = config.rms_norm_eps
        self._eps_tensor = torch.tensor(self._eps, dtype=torch.float32, device=model.device)
        self._gelu = activation(config) != "silu"
        self.shapes = [LayerShape(heads=self._heads, dim=self._dim)] * config.num_hidden_layers
        self._bindings: dict[str, Binding] = {}
        self._dtype, self._device = model.dtype, model.device
        self._onednn = onednn_product() if self._dtype == torch.float32 and self._device.type == "cpu" else None
        self._embedding = self._plain(model, "model.embed_tokens.weight")
        tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        self._head = self._embedding if tied else self._plain(model, "lm_head.weight")
        if tied:
            self._bindings["lm_head.weight"] = self._bindings["model.embed_tokens.weight"]
        self._norm = self._plain(model, "model.norm.weight")
        self._embed_scale = model.model.embed_tokens.embed_scale.to(self._dtype) if self._family.sandwich else None
        self._layers = [self._layer(model, index) for index in range(config.num_hidden_layers)]
        self._rotations = _rotations(model, context_length, self._dim)
        state = model.state_dict()
        if set(state) != set(self._bindings):
            raise Unsupported(f"the model has weights of its own: {sorted(set(state) ^ set(self._bindings))[:3]}")
        for name, tensor in state.items():
            self._bindings[name].write(tensor)
        self.weights = Weights(bindings=self._bindings, dtype=self._dtype, refresh=self._refresh)
        self._refresh()

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _plain(self, model: Any, name: str) -> torch.Tensor:
        tensor = self._empty(*model.get_parameter(name).shape)
        self._bindings[name] = Binding(view=tensor, shape=tuple(tensor.shape))
        return tensor

    def _layer(self, model: Any, index: int) -> Layer:
        prefix = f"model.layers.{index}."
        block = model.model.layers[index]
        hidden = model.config.hidden_size
        qkv = self._empty(self._heads * (self._group + 2) * self._dim, hidden)
        self._bind_qkv(prefix, "weight", qkv.view(self._heads, self._group + 2, self._dim, hidden))
        bias = None
        if block.self_attn.q_proj.bias is not None:
            bias = self._empty(qkv.shape[0])
            self._bind_qkv(prefix, "bias", bias.view(self._heads, self._group + 2, self._dim))
        half = block.mlp.gate_proj.weight.shape[0]
        gate_up = self._empty(2 * half, hidden)
        self._bindings[prefix + "mlp.gate_proj.weight"] = Binding(view=gate_up[:half], shape=(half, hidden))
        self._bindings[prefix + "mlp.up_proj.weight"] = Binding(view=gate_up[half:], shape=(half, hidden))
        names = [name.removesuffix(".weight") for name, _ in block.named_parameters() if "norm" in name]
        kind = model.config.layer_types[index] if self._family.sandwich else ""
        window = getattr(block.self_attn, "sliding_window", None)
        if model.config.model_type == "mistral":
            window = model.config.sliding_window
        return Layer(
            qkv=qkv,
            qkv_bias=bias,
            output=self._plain(model, prefix + "self_attn.o_proj.weight"),
            output_bias=self._plain(model, prefix + "self_attn.o_proj.bias") if block.self_attn.o_proj.bias is not None else None,
            gate_up=gate_up,
            down=self._plain(model, prefix + "mlp.down_proj.weight"),
            norms={name.rpartition(".")[2]: self._plain(model, f"{prefix}{name}.weight") for name in names},
            factors={},
            attention=Attention(scale=block.self_attn.scaling, window=window),
            rotation=kind,
        )

    def _bind_qkv(self, prefix: str, leaf: str, fused: torch.Tensor) -> None:
        """Bind q, k and v to [kv heads, queries per kv head + 2, dim, ...]; rotated pairs lie side by side, values as they are."""
        rest = tuple(fused.shape[3:])
        paired = fused.unflatten(2, (self._dim // 2, 2))
        order = (0, 1, 3, 2, 4)[: 4 + len(rest)]
        for name, view, count in (("q", paired[:, : self._group], self._group), ("k", paired[:, self._group : -1], 1)):
            self._bindings[f"{prefix}self_attn.{name}_proj.{leaf}"] = Binding(
                view=view,
                shape=(self._heads * count * self._dim, *rest),
                factored=(self._heads, count, 2, self._dim // 2, *rest),
                order=order,
            )
        self._bindings[f"{prefix}self_attn.v_proj.{leaf}"] = Binding(
            view=fused[:, -1],
            shape=(self._heads * self._dim, *rest),
            factored=(self._heads, self._dim, *rest),
            order=tuple(range(2 + len(rest))),
        )

    def _refresh(self) -> None:
        plus = 1.0 if self._family.sandwich else 0.0
        self._norm_factor = self._norm.float() + plus if plus else self._norm
        for layer in self._layers:
            layer.factors = {name: norm.float() + plus if plus else norm for name, norm in layer.norms.items()}
            if self._family.qk_norm:
                query, key = (layer.factors.pop(name).view(2, -1).t().reshape(-1) for name in ("q_norm", "k_norm"))
                layer.factors["qk"] = torch.stack([query] * self._group + [key])

    def forward(self, step: Step) -> torch.Tensor:
        """As in `Decoder`."""
        hidden = torch.embedding(self._embedding, step.ids)
        if self._embed_scale is not None:
            hidden = hidden * self._embed_scale
        turns = {kind: table[step.positions] for kind, table in self._rotations.items()}
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            attended = self._attend(step, index, layer, self._rms(hidden, layer.factors["input_layernorm"]), turns[layer.rotation])
            if index == last and step.wanted is not None:  # nothing after this depends on other tokens
                attended, hidden = attended[step.wanted], hidden[step.wanted]
            hidden = self._mlp(layer, self._add_attention(layer, hidden, attended))
        return self._product(self._rms(hidden, self._norm_factor), self._head).float()

    def _product(self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Values x weight^T + bias."""
        if self._onednn is not None and weight.numel() >= LARGE_WEIGHT:
            product: torch.Tensor = self._onednn(values, weight, bias, "none", [], "")
            return product
        return torch.mm(values, weight.t()) if bias is None else torch.addmm(bias, values, weight.t())

    def _add_product(self, hidden: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Hidden + values x weight^T, in place."""
        if self._onednn is not None and weight.numel() >= LARGE_WEIGHT:
            return hidden.add_(self._onednn(values, weight, None, "none", [], ""))
        return hidden.addmm_(values, weight.t())

    def _attend(self, step: Step, index: int, layer: Layer, normed: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, query heads x dim]."""
        fused = self._product(normed, layer.qkv, layer.qkv_bias)
        pairs = fused.view(-1, self._heads, self._group + 2, self._dim // 2, 2)
        fused = fused.view(-1, self._heads, self._group + 2, self._dim)
        turned = fused[:, :, :-1]
        if self._family.qk_norm:
            turned = self._rms(turned, layer.factors["qk"])
        if self._dtype == torch.float32:
            torch.mul(_complex(turned, self._dim), turns, out=torch.view_as_complex(pairs)[:, :, :-1])
        else:
            pairs[:, :, :-1] = torch.view_as_real(_complex(turned.float(), self._dim) * turns)
        result = step.attend(index, fused[:, :, :-2], fused[:, :, -2:], layer.attention)
        return result.view(-1, self._heads * self._group * self._dim)

    def _add_attention(self, layer: Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        if self._family.sandwich:
            return self._rms(self._product(attended, layer.output), layer.factors["post_attention_layernorm"]).add_(hidden)
        if layer.output_bias is not None:
            hidden += layer.output_bias
        return self._add_product(hidden, attended, layer.output)

    def _mlp(self, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
        before = "pre_feedforward_layernorm" if self._family.sandwich else "post_attention_layernorm"
        gate, up = self._product(self._rms(hidden, layer.factors[before]), layer.gate_up).chunk(2, -1)
        inner = (F.gelu(gate, approximate="tanh") if self._gelu else F.silu(gate)).mul_(up)
        if self._family.sandwich:
            return self._rms(self._product(inner, layer.down), layer.factors["post_feedforward_layernorm"]).add_(hidden)
        return self._add_product(hidden, inner, layer.down)

    def _rms(self, values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last dimension; `factor` may have one row for each of the second to last."""
        if self._dtype == torch.float32:  # as exact as torch.rms_norm, in two thirds of its time on a CPU
            length = torch.linalg.vector_norm(values, 2, -1, True)
            scale = torch.addcmul(self._eps_tensor, length, length, value=1 / values.shape[-1]).rsqrt_()
            return (values * scale).mul_(factor)
        normed = torch.rms_norm(values.float(), (values.shape[-1],), None, self._eps)
        if self._family.sandwich:  # Gemma multiplies before it rounds, Llama after
            return normed.mul_(factor).to(self._dtype)
        return normed.to(self._dtype).mul_(factor)


def _rotations(model: Any, length: int, dim: int) -> dict[str, torch.Tensor]:
    """For each kind of layer, [positions, 1, 1, dim / 2] complex64: the model's own rotary embedding as unit complex numbers."""
    rotary = model.model.rotary_emb
    types = rotary.rope_type if isinstance(rotary.rope_type, dict) else {"": rotary.rope_type}
    positions = torch.arange(length, device=model.device)[None]
    tables = {}
    for kind, rope_type in types.items():
        if rope_type == "longrope" or "dynamic" in rope_type:
            raise Unsupported(f"rotary embeddings of type {rope_type} depend on the length of the sequence")
        like = torch.zeros(1, device=model.device)
        cos, sin = rotary(like, positions, kind) if kind else rotary(like, positions)
        if cos.shape[-1] != dim:
            raise Unsupported(f"rotary embeddings cover {cos.shape[-1]} of {dim} dimensions")
        half = slice(0, dim // 2)
        tables[kind] = torch.complex(cos[0, :, half].contiguous(), sin[0, :, half].contiguous())[:, None, None]
    return tables


def _complex(values: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.view_as_complex(
        values.unflatten(-1, (dim // 2, 2)) if not values.is_contiguous() else values.view(*values.shape[:-1], dim // 2, 2)
    )
