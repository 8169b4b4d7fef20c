"""Low-rank adapters on a model, through peft: new ones, and ones that are continued. Nothing is ever merged in place."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from agentrl.adapter_folder import WEIGHTS, check_base, check_tokenizer, read_adapter, settled
from agentrl.errors import ConfigError
from agentrl.learner.quantized import quantize

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from peft import PeftModel
    from transformers import PreTrainedModel

    from agentrl.config_learner import LoraConfig

CLASSIFIERS = ("score", "classifier")
"""Heads that are trained whole, and so are never quantized."""
ADAPTER = "default"
"""peft's name for the adapter that `get_peft_model` makes."""
TASKS: dict[Literal["tokens", "score", "labels"], str] = {"tokens": "CAUSAL_LM", "score": "SEQ_CLS", "labels": "TOKEN_CLS"}
"""What the policy's head gives -> peft's name for it."""


def prepare_base(model: PreTrainedModel, lora: LoraConfig, device: torch.device) -> None:
    """Quantize the layers that an adapter leaves as they are, where the run file says so; in place, before the model goes to its device."""
    if lora.quantize is not None:
        head = model.get_output_embeddings()
        kept = {*settled(lora).modules_to_save, *CLASSIFIERS}
        quantize(model, lora.quantize, device, skipped=[] if head is None else [head], names=kept)


def with_adapter(model: PreTrainedModel, lora: LoraConfig, seed: int, *, task: str = "CAUSAL_LM", whole: Collection[str] = ()) -> PeftModel:
    """Put an adapter into a model, in place: a new one that changes nothing yet, or the one in the folder `lora.adapter`.

    Args:
        model: it keeps its own weights beneath.
        lora: the run file's section.
        seed: from which a new adapter is drawn.
        task: peft's name for what the head gives.
        whole: names of modules that are trained whole, beside those of `lora.modules_to_save`: a classifier's head.

    Raises `ConfigError` for layers that are not there or cannot be adapted, and for an adapter of another model.
    """
    import peft

    settings = settled(lora)
    named = set(settings.modules_to_save) - (set(CLASSIFIERS) if whole else set())  # peft names each head that a classifier may have
    settings = settings.model_copy(update={"modules_to_save": sorted(named | set(whole))})
    _check_names(model, settings)
    options = _options(model, lora, settings, task)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)  # the same adapter on every rank
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # between peft and transformers
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # it then sets what is right
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)  # such a layer is refused below
        try:
            adapted = cast("PeftModel", peft.get_peft_model(model, options))
        except ValueError as error:
            raise ConfigError(f"learner.lora.target_modules={settings.target_modules!r}: {error}") from error
    _check_layers(model)
    _raise_types(model, adapted)
    for _, module in saved_modules(model):
        for part in module.modules():
            vars(part).pop("forward", None)  # a replaced forward pass reads the weights of the module that was copied
    if lora.adapter is not None:
        load_adapter(adapted, lora.adapter)
    return adapted


def check_adapter(adapter: str, model: str) -> None:
    """Raise `ConfigError` where a folder holds no adapter for this model; shapes are checked when it is loaded."""
    check_base(adapter, model)
    check_tokenizer(adapter, model)


def train_only_adapter(adapted: PeftModel) -> None:
    """Freeze all but the adapter and the modules that are trained whole."""
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(is_adapters(name))


def is_adapters(name: str) -> bool:
    """Whether a parameter of this name belongs to the adapter: its matrices, magnitudes, and whole modules."""
    return ".lora_" in name or ".modules_to_save." in name


def saved_name(name: str) -> str:
    """A parameter's name in peft's files."""
    return name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector").replace(
        f".modules_to_save.{ADAPTER}.", "."
    ).replace(f".{ADAPTER}.", ".")  # fmt: skip


def adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    """The layers with an adapter, by their names in the model."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def saved_modules(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules that are trained whole, by the names of those that they stand for."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield name, module.modules_to_save[ADAPTER]


def plain_layer(layer: Any) -> Any:
    """The module that computes where one is trained whole: the trained copy, or the first one while the adapter is off."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(layer, ModulesToSaveWrapper):
        return layer
    return layer.original_module if layer.disable_adapters else layer.modules_to_save[ADAPTER]


def load_adapter(adapted: PeftModel, folder: str) -> None:
    """Read an adapter's tensors into one of the same configuration; raises `ConfigError` that names what does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"adapter {folder!r} has no {WEIGHTS}; adapters saved as .bin files have to be saved again by a newer peft")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"adapter file {path} does not read: {error}; save the adapter again") from error
    own = {saved_name(name): parameter for name, parameter in adapted.named_parameters() if is_adapters(name)}
    other = sorted(own.keys() ^ found.keys())
    if other:
        side = "the model has no place for" if other[0] in found else "the file has no"
        raise ConfigError(f"adapter {folder!r} does not fit the model: {side} {other[0]} ({len(other)} such); it is another model's")
    for name, parameter in own.items():
        if found[name].shape != parameter.shape:
            raise ConfigError(
                f"adapter {folder!r} does not fit the model: {name} is {tuple(found[name].shape)} in the file and "
                f"{tuple(parameter.shape)} here; it is another model's"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])


def _raise_types(model: PreTrainedModel, adapted: PeftModel) -> None:
    """Adapters are made in float32: give them at least the type of the weights beneath, so that a merged copy is what is computed."""
    for name, parameter in adapted.named_parameters():
        if is_adapters(name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, model.dtype))


def _options(model: PreTrainedModel, lora: LoraConfig, settings: LoraConfig, task: str) -> Any:
    import peft

    if lora.adapter is not None:
        found = read_adapter(lora.adapter)
        known = peft.LoraConfig.__dataclass_fields__
        unknown = sorted(key for key, value in found.items() if key not in known and value)
        if unknown:
            raise ConfigError(f"adapter {lora.adapter!r} was saved with {', '.join(unknown)}, which this peft does not know: upgrade peft")
        kept = {key: value for key, value in found.items() if key in known and key not in ("peft_type", "runtime_config")}
        own = {
            "base_model_name_or_path": None,
            "lora_dropout": 0.0,
            "inference_mode": False,
            "task_type": task,
            "modules_to_save": settings.modules_to_save or None,
        }
        return peft.LoraConfig(**kept | own)
    targets = settings.target_modules
    if targets == "all-linear" and settings.layers is not None:  # peft numbers layers only where modules are named
        targets = sorted({name.rpartition(".")[2] for name in _linear_layers(model)} - set(settings.modules_to_save))
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=cast("int", settings.alpha),
        lora_dropout=0.0,
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
        target_modules=targets,
        exclude_modules=sorted({*settings.exclude_modules, *settings.modules_to_save}) or None,
        layers_to_transform=settings.layers,
        modules_to_save=settings.modules_to_save or None,
        bias="none",
        task_type=task,
    )


def _linear_layers(model: PreTrainedModel) -> Iterator[str]:
    head = model.get_output_embeddings()
    return (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head)


def _check_names(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Raise `ConfigError` for names that no module has: peft passes over some of them in silence."""
    names = [name for name, _ in model.named_modules()]
    lists = {"exclude_modules": lora.exclude_modules, "modules_to_save": lora.modules_to_save}
    if not isinstance(lora.target_modules, str):
        lists["target_modules"] = list(lora.target_modules)
    for key, wanted in lists.items():
        for one in wanted:
            if not any(f".{name}".endswith(f".{one}") for name in names):
                last = sorted({name.rpartition(".")[2] for name in names if not re.search(r"(^|\.)\d+$", name)} - {""})
                raise ConfigError(f"learner.lora.{key} has {one!r}, and the model has no module of that name; it has {', '.join(last)}")
    depth = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    beyond = [layer for layer in lora.layers or () if layer >= depth]
    if beyond:
        raise ConfigError(f"learner.lora.layers has {beyond[0]}, and the model has {depth} layers, numbered from 0")
    if lora.layers is not None and isinstance(lora.target_modules, str) and lora.target_modules != "all-linear":
        raise ConfigError(
            f"learner.lora.layers={lora.layers} needs target_modules to be names, and it is the expression {lora.target_modules!r}: write "
            "the layers' numbers into the expression, or list names"
        )
    _check_tied(model, lora.modules_to_save)


def _check_tied(model: PreTrainedModel, wanted: Collection[str]) -> None:
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if head is None or embeddings is None or head.weight is not embeddings.weight:
        return
    for name, module in model.named_modules():
        if (module is head or module is embeddings) and name.rpartition(".")[2] in wanted:
            raise ConfigError(
                f"learner.lora.modules_to_save has {name.rpartition('.')[2]}, and this model's head and embeddings are one matrix: a "
                "trained copy of one would part them, and the model could not be saved as what it is; train without it, or without an "
                "adapter"
            )


def _check_layers(model: PreTrainedModel) -> None:
    import peft

    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if isinstance(head, peft.tuners.lora.LoraLayer) and head.get_base_layer().weight is embeddings.weight:
        raise ConfigError(
            "the adapter adapts the output layer, and this model's head and embeddings are one matrix: merged into it, the adapter would "
            "change the embeddings too. Train without it in learner.lora.target_modules; an adapter that has it can only be used beside "
            "its base"
        )
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and type(module) is not peft.tuners.lora.Linear:
            raise ConfigError(f"learner.lora.target_modules adapts {name}, a {type(module).__name__}; only linear layers can be adapted")
        inside = [part for part in name.split(".")[1:] if part == "modules_to_save"]
        if inside and isinstance(module, peft.tuners.lora.LoraLayer):
            raise ConfigError(f"learner.lora.target_modules and modules_to_save both name {name}: a layer is trained one way")
