"""Models from folders, made ready to train or to stand still."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM

from agentrl.errors import ConfigError
from agentrl.learner.adapters import TASKS, check_adapter, prepare_base, train_only_adapter, with_adapter
from agentrl.learner.attention import ATTENTION
from agentrl.learner.fused import fuse
from agentrl.learner.layers import replace_layers
from agentrl.learner.logprobs import Head
from agentrl.learner.model import Policy, check_packing
from agentrl.learner.scorer import check_scorer, read_scorer, score_layer_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from agentrl.config import RunConfig
    from agentrl.learner.model import Output

TILE_MIB = {"cpu": 64, "cuda": 512}
"""Of `learner.head_chunk_mib`. On a GPU small tiles are many launches of small products."""


def load_policy(
    config: RunConfig,
    folder: str,
    device: torch.device,
    *,
    master: torch.dtype,
    trained: bool,
    values: bool = False,
    output: Output = "tokens",
) -> Policy:
    """Load a model and make it ready to train, or freeze it.

    Args:
        config: temperature, LoRA, gradient checkpointing, dtype and head memory.
        folder: what `from_pretrained` takes.
        device: where it goes.
        master: type of the parameters.
        trained: False gives a frozen model without an adapter.
        values: whether it gets a value head, which is trained even where only an adapter of the model is.
        output: what its head gives; a classifier's head is trained even where only an adapter of the model is.

    Raises `ConfigError` for a model that does not load, or that packed rows would train wrongly.
    """
    model = read_model(folder, master) if output == "tokens" else read_scorer(folder, output, master, config.seed)
    learner = config.learner
    model.train(False)  # the sampler drew without dropout
    half = learner.dtype == "bfloat16" or (learner.dtype == "auto" and device.type == "cuda")
    if device.type == "cpu" and not half:
        fuse(model)
        if learner.lora is None and not learner.gradient_checkpointing and (learner.ranks == 1 or learner.sharding == "ddp"):
            replace_layers(model)  # adapters, checkpoints and shards hook into the modules inside a layer
    if learner.lora is not None:
        prepare_base(model, learner.lora, device)
    torch.nn.Module.to(model, device)
    lora = learner.lora if trained else None
    if lora is not None and lora.adapter is not None:
        check_adapter(lora.adapter, folder)
    heads = () if output == "tokens" else (score_layer_name(model),)
    adapted = with_adapter(model, lora, config.seed, task=TASKS[output], whole=heads) if lora is not None else model
    if trained and learner.gradient_checkpointing:
        _checkpoint_layers(model)
    adapted.requires_grad_(trained and lora is None)
    if lora is not None:
        train_only_adapter(cast("PeftModel", adapted))
    policy = Policy(adapted, _head(model, config, device), torch.bfloat16 if half else master, values=values, output=output)
    (check_packing if output == "tokens" else check_scorer)(policy)
    return policy


def read_model(folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model from a folder or Hub name, in this type; raises `ConfigError` where it does not load."""
    shows_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()  # the terminal is the run's
    try:
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": ATTENTION, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # somebody else's files: each format has its own errors, and all of them mean this
        place = "" if Path(folder).is_dir() else " (there is no such folder here, so it was looked for on the Hugging Face Hub)"
        raise ConfigError(f"model {folder!r}{place} does not load as a causal language model: {type(error).__name__}: {error}") from error
    finally:
        if shows_bars:
            transformers.logging.enable_progress_bar()
    model, loading = loaded
    if loading["missing_keys"]:  # transformers draws them at random and goes on
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError(
            f"model {folder!r} has no weights for {len(loading['missing_keys'])} tensors of a {type(model).__name__}, such as {missing}: "
            "its files are not whole, or it is no language model (a classifier has another head); give one whose files are"
        )
    return cast("PreTrainedModel", model)


def _head(model: PreTrainedModel, config: RunConfig, device: torch.device) -> Head:
    options = model.config.get_text_config()
    scale = float(getattr(options, "logit_scale", None) or 1.0) / float(getattr(options, "logits_scaling", None) or 1.0)
    return Head(
        temperature=config.sampling.temperature,
        scale=scale,
        softcap=getattr(options, "final_logit_softcapping", None),
        tile_mib=config.learner.head_chunk_mib or TILE_MIB[device.type],
    )


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Keep only the inputs of each layer for the backward pass. Layers do so in training mode alone; all that is in them stays in eval."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"{type(model).__name__} has no gradient checkpointing; set learner.gradient_checkpointing=false")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # its newer and older name
    enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)  # some layers apply it as a function, by their own training flag
