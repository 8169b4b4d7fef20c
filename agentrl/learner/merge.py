"""An adapter merged into its base, from folder to folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from agentrl.adapter_folder import TOKENIZER_FILES, read_adapter
from agentrl.config_learner import LoraConfig
from agentrl.errors import CheckpointError, ConfigError
from agentrl.learner.adapters import TASKS, check_adapter, with_adapter
from agentrl.learner.loading import read_model
from agentrl.learner.logprobs import Head
from agentrl.learner.model import Policy
from agentrl.learner.scorer import read_scorer, score_layer_name
from agentrl.learner.weights import all_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(adapter: str, output: Path, *, model: str | None = None, dtype: str | None = None) -> str:
    """Write a model with an adapter merged into it, and its tokenizer, for `from_pretrained`; returns the base's name.

    Args:
        adapter: a folder that peft or agentrl wrote.
        output: a folder that does not exist, or is empty.
        model: folder or Hub name of the base; by default the one that the adapter names.
        dtype: of the weights that are written, one of `DTYPES`; by default that of the base. The sum is made in float32 and rounded once.

    Raises `ConfigError` for an adapter of another model, and `CheckpointError` where the disk refuses.
    """
    settings = read_adapter(adapter)
    base = model or settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"adapter {adapter!r} names no base model; name it: --model FOLDER")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output {str(output)!r} is there already; name a folder that does not exist")
    check_adapter(adapter, base)
    target = DTYPES[dtype] if dtype else _dtype_of(base)
    tasks = {task: kind for kind, task in TASKS.items()}
    output_kind = tasks.get(str(settings.get("task_type")), "tokens")
    read = read_model(base, torch.float32) if output_kind == "tokens" else read_scorer(base, output_kind, torch.float32, 0)
    heads = () if output_kind == "tokens" else (score_layer_name(read),)
    adapted = with_adapter(read, LoraConfig(adapter=adapter), 0, task=TASKS[output_kind], whole=heads)
    policy = Policy(adapted, Head(), torch.float32, output=output_kind)
    weights = {name: (tensor.to(target) if tensor.is_floating_point() else tensor).contiguous() for name, tensor in all_weights(policy)}
    torch.nn.Module.to(policy.base, target)  # which the configuration is written from
    tokenizer = _tokenizer_of(adapter, base)
    try:
        policy.base.save_pretrained(output, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(output)
    except (OSError, RuntimeError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise CheckpointError(f"cannot write the merged model to {output}: {error}") from error
    return base


def _dtype_of(model: str) -> torch.dtype:
    try:
        found = AutoConfig.from_pretrained(model).dtype
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r}, which the adapter was trained on, does not load: {error}; name it: --model FOLDER") from error
    return found if isinstance(found, torch.dtype) else torch.float32


def _tokenizer_of(adapter: str, model: str) -> PreTrainedTokenizerBase | None:
    """The adapter's own where one lies beside it, else the model's; None where neither has one."""
    for place in (adapter, model):
        if not Path(place).is_dir() or any((Path(place) / name).is_file() for name in TOKENIZER_FILES):
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
            return found
    return None
