"""The final model on disk, as transformers and peft load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from agentrl.adapter_folder import write_base
from agentrl.errors import CheckpointError
from agentrl.learner.adapters import is_adapters
from agentrl.learner.ranks import whole
from agentrl.learner.weights import all_weights

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

    from agentrl.learner.model import Policy


ADAPTER_FOLDER = "adapter"
"""Within the final model's folder."""


def export(folder: Path, policy: Policy, tokenizer: PreTrainedTokenizerBase | str | None, *, writes: bool) -> None:
    """Write a model that `AutoModelForCausalLM.from_pretrained(folder)` loads, the adapter merged, and the adapter alone in `adapter/`.

    Args:
        folder: made where it does not exist.
        policy: the trained policy; a collective where the ranks hold shards.
        tokenizer: the tokenizer to lay beside it, a folder that has one, or None for no tokenizer.
        writes: whether this rank writes.

    Raises `CheckpointError` where the disk refuses.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in all_weights(policy)}
    adapter = {name: whole(tensor).cpu() for name, tensor in policy.model.state_dict().items() if is_adapters(name)}
    if not writes:
        return
    try:
        policy.base.save_pretrained(folder, state_dict=weights)
        if policy.adapted:
            model = cast("PeftModel", policy.model)
            model.save_pretrained(str(folder / ADAPTER_FOLDER), state_dict=adapter, save_embedding_layers=False)
            write_base(folder / ADAPTER_FOLDER, policy.base.name_or_path or "")
        tokens = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer
        if tokens is not None:
            tokens.save_pretrained(folder)
            if policy.adapted:
                tokens.save_pretrained(folder / ADAPTER_FOLDER)
    except (OSError, RuntimeError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise CheckpointError(f"cannot write the final model to {folder}: {error}") from error
