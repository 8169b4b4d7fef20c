"""vLLM's layer-by-layer reload, and what it lacks for a trainer: giving up an update, and noticing a half one.

While a reload is open, tensors are buffered until a layer has all of its elements; see `model_executor/model_loader/reload` in vLLM 0.32.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader import reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

if TYPE_CHECKING:
    from collections.abc import Iterator


def begin(model: torch.nn.Module) -> None:
    """Open a reload."""
    reload.initialize_layerwise_reload(model)


def finish(model: torch.nn.Module, model_config: Any) -> None:
    """Close a reload: layers that wait only for padding get what they have."""
    reload.finalize_layerwise_reload(model, model_config)
    _repack_tied_heads(model)


def abandon(model: torch.nn.Module, model_config: Any) -> None:
    """Close a reload without what is still buffered; layers that were complete keep the new weights. Does nothing where none is open.

    Otherwise the buffered tensors would count towards the next update, which would then mix the two.
    """
    for _, _, info in _open_layers(model):
        info.load_numel = 0
        info.loaded_weights.clear()
    finish(model, model_config)


def keep_pending(model: torch.nn.Module) -> None:
    """Give buffered tensors memory of their own: that of the learner may change or go before the reload is closed."""
    for _, _, info in _open_layers(model):
        for _, bound in info.loaded_weights:
            for key, value in bound.arguments.items():
                if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter) and not value.is_meta:
                    bound.arguments[key] = value.clone()


def half_loaded(model: torch.nn.Module) -> set[str]:
    """Linear layers with some but not all of their elements, such as q and k without v; embeddings are padded and never full."""
    return {
        f"a part of {name}"
        for name, layer, info in _open_layers(model)
        if isinstance(layer, LinearBase) and 0 < info.load_numel < info.load_numel_total
    }


def without_draft_check() -> contextlib.AbstractContextManager[None]:
    """Let a model be loaded in parts; newer releases of vLLM check some models for completeness in each call."""
    try:
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
    except ImportError:
        return contextlib.nullcontext()
    guard: contextlib.AbstractContextManager[None] = disable_mtp_completeness_check()
    return guard


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Have a head that shares the embeddings' weights read them again.

    On a CPU vLLM multiplies by a packed copy that it makes when a layer is loaded, and a tied head is never loaded itself: without this
    the logits would come from the weights that the server started with (seen in 0.32, off by 0.2 to 0.7 nats).
    """
    heads = [layer for layer in model.modules() if isinstance(layer, ParallelLMHead)]
    shared = {
        id(layer.weight) for layer in model.modules() if isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead)
    }
    for head in heads:
        if id(head.weight) in shared and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)


def _open_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, Any]]:
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            yield name, layer, info
