"""The generic path: any decoder of transformers whose attention goes through its `AttentionInterface`.

The model's own modules run on all tokens of a step as one packed row; the attention function and the cache are the engine's.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, Cache

from agentrl.engines.attention import Attention
from agentrl.engines.families import Unsupported
from agentrl.engines.kv import LayerShape
from agentrl.engines.weights import Binding, Weights

if TYPE_CHECKING:
    from agentrl.engines.step import Step

ATTENTION = "agentrl_pools"
"""Name under which transformers knows the attention function."""


@dataclass(slots=True, kw_only=True)
class _Pass:
    """One forward pass, as the attention function needs to know it. `step` is None while shapes are being found out."""

    step: Step | None
    shapes: dict[int, LayerShape] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    layer: int = -1


_current: ContextVar[_Pass] = ContextVar("current")


class _StepCache(Cache):
    """Tells the attention function which layer it is in; keys and values go to the engine's cache there."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pass new keys and values through."""
        del args, kwargs
        _current.get().layer = layer_idx
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so nobody depends on this."""
        del layer_idx
        return 0


class GenericDecoder:
    """Runs a transformers model; takes it over.

    Raises `Unsupported` where the model does not use the attention interface or asks of it something that is not handled here.
    """

    def __init__(self, model: Any) -> None:
        if getattr(model.config, "attention_chunk_size", None):
            raise Unsupported("chunked attention is not handled")
        model.set_attn_implementation(ATTENTION)
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        if "position_ids" not in parameters:
            raise Unsupported("its forward takes no position_ids")
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        state: dict[str, torch.Tensor] = model.state_dict()
        bindings = {name: Binding(view=tensor, shape=tuple(tensor.shape)) for name, tensor in state.items()}
        self.weights = Weights(bindings=bindings, dtype=model.dtype)
        self.shapes = self._find_shapes()

    def _find_shapes(self) -> list[LayerShape]:
        config = self._model.config.get_text_config()
        layers = config.num_hidden_layers
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
        others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if others:
            raise Unsupported(f"it has layers of kind {', '.join(others)}")
        ids = torch.zeros((1, 2), dtype=torch.int64, device=self._model.device)
        run = _Pass(step=None)
        self._run(run, ids, torch.arange(2, device=ids.device)[None], 1)
        if sorted(run.shapes) != list(range(layers)):
            raise Unsupported("its attention does not go through transformers' AttentionInterface and a cache in every layer")
        for index, kind in enumerate(kinds):  # the probe may be too short to cross a window
            if kind == "sliding_attention" and run.windows[index] is None:
                raise Unsupported(f"layer {index} does not pass its window to the attention function")
        return [run.shapes[index] for index in range(layers)]

    def forward(self, step: Step) -> torch.Tensor:
        """As in `Decoder`."""
        wanted = 0 if step.wanted is None else step.wanted
        if step.wanted is not None and not len(step.wanted):
            wanted = torch.zeros(1, dtype=torch.int64, device=step.ids.device)
        logits = self._run(_Pass(step=step), step.ids[None], step.positions[None], wanted)[0]
        return logits.float() if step.wanted is None or len(step.wanted) else logits[:0].float()

    def _run(self, run: _Pass, ids: torch.Tensor, positions: torch.Tensor, wanted: int | torch.Tensor) -> torch.Tensor:
        token = _current.set(run)
        try:
            arguments = {self._cache_name: _StepCache(), "position_ids": positions, "use_cache": True, "logits_to_keep": wanted}
            logits: torch.Tensor = self._model(input_ids=ids, **arguments).logits
        finally:
            _current.reset(token)
        return logits


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface over one packed row: query [1, heads, tokens, dim], key and value [1, kv heads, tokens, dim]."""
    del module, attention_mask
    if kwargs.get("position_bias") is not None or kwargs.get("is_causal") is False:
        raise Unsupported("position biases and attention that looks ahead are not handled")
    run = _current.get()
    heads, dim, value_dim = key.shape[1], query.shape[-1], value.shape[-1]
    if run.step is None:
        run.windows[run.layer] = sliding_window
        run.shapes[run.layer] = LayerShape(heads=heads, dim=max(dim, value_dim))
        return query.new_zeros((1, query.shape[2], query.shape[1], value_dim)), None
    widest = max(dim, value_dim)
    new = torch.stack([F.pad(key[0], (0, widest - dim)), F.pad(value[0], (0, widest - value_dim))], 2)
    grouped = F.pad(query[0], (0, widest - dim)).transpose(0, 1).reshape(-1, heads, query.shape[1] // heads, widest)
    how = Attention(scale=dim**-0.5 if scaling is None else scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
    result = run.step.attend(run.layer, grouped, new.permute(1, 0, 2, 3), how)
    return result.reshape(1, -1, query.shape[1], widest)[..., :value_dim], None


AttentionInterface.register(ATTENTION, _attention)
