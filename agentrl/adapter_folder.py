"""Adapters on disk, as peft writes them: what their configuration says, and whether they belong to a model and its tokenizer.

Nothing here takes torch: a run file that names an adapter is checked before anything starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.config_learner import LoraConfig

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "agentrl_base.json"
"""Files of an adapter's folder: peft's two, and what agentrl writes of the model that the adapter was trained on."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
OTHER_FEATURES = ("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "lora_bias", "use_qalora")
"""Keys of peft's configuration that change what an adapter computes and that the learner does not train, unless they are empty."""
CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
"""Ways to begin an adapter that change the model beneath it: the folder holds no trace of those changes."""
CHUNK_BYTES = 1 << 24


def read_adapter(folder: str) -> dict[str, Any]:
    """What `adapter_config.json` says; raises `ConfigError` for a folder that is no LoRA adapter, or one that cannot be trained here."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        inner = next((one for one in (path / "adapter", path / "model" / "adapter") if (one / CONFIG).is_file()), None)
        cure = f"name {inner}, which has one" if inner else "name the folder that holds that file"
        raise ConfigError(f"adapter {folder!r} is not a folder that peft wrote: it has no {CONFIG}; {cure}")
    try:
        found: Any = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"adapter file {path / CONFIG} does not read: {error}; save the adapter again") from error
    kind = found.get("peft_type") if isinstance(found, dict) else None
    if kind != "LORA":
        raise ConfigError(f"adapter {folder!r} is of the type {kind!r}; LORA is the one that can be trained and merged here")
    other = [key for key in OTHER_FEATURES if found.get(key)]
    if found.get("bias", "none") != "none":
        other.append(f"bias={found['bias']}")
    init = found.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGING_INITS):
        other.append(f"init_lora_weights={init} (convert it to a plain LoRA with peft's path_initial_model_for_weight_conversion)")
    if other:
        raise ConfigError(f"adapter {folder!r} uses {', '.join(other)}, which is not trained here; plain LoRA, rsLoRA and DoRA are")
    settings: dict[str, Any] = found
    return settings


def variant_of(adapter: dict[str, Any]) -> str:
    """`lora`, `rslora` or `dora`, as `learner.lora.variant` calls them."""
    if adapter.get("use_dora"):
        return "dora"
    return "rslora" if adapter.get("use_rslora") else "lora"


def settled(lora: LoraConfig) -> LoraConfig:
    """The section with the values that are in force: of an adapter that is continued, those are its own.

    Raises `ConfigError` where the run file asks for others, or where the folder does not read.
    """
    if lora.adapter is None:
        return lora
    found = read_adapter(lora.adapter)
    ranks = [int(found["r"]), *map(int, (found.get("rank_pattern") or {}).values())]
    own = {
        "variant": variant_of(found),
        "rank": max(ranks),
        "alpha": float(found["lora_alpha"]),
        "target_modules": found.get("target_modules"),
        "exclude_modules": found.get("exclude_modules") or [],
        "layers": found.get("layers_to_transform"),
        "modules_to_save": found.get("modules_to_save") or [],
    }
    if isinstance(own["target_modules"], list):
        own["target_modules"] = sorted(own["target_modules"])
    defaults = type(lora)()
    for key, value in own.items():
        wanted = getattr(lora, key)
        if wanted not in (getattr(defaults, key), value) and not (isinstance(wanted, list) and sorted(wanted) == value):
            raise ConfigError(
                f"learner.lora.{key} is {wanted} and the adapter in {lora.adapter!r} has {value}: an adapter that is continued keeps its "
                f"own; remove learner.lora.{key}, or start a new adapter without learner.lora.adapter"
            )
    return lora.model_copy(update=own)


def whole_only(lora: LoraConfig) -> str | None:
    """Why servers have to be sent the merged model and not the adapter, in words; None where vLLM serves such an adapter as it is."""
    own = settled(lora)
    if own.quantize is not None:
        return "learner.lora.quantize trains the adapter on a model in few bits, which is not the one that the servers hold"
    if own.variant == "dora":
        return "vLLM serves no DoRA adapters (learner.lora.variant)"
    if own.modules_to_save:
        return "vLLM serves no adapters with whole modules (learner.lora.modules_to_save)"
    return None


def check_base(adapter: str, model: str) -> None:
    """Raise `ConfigError` where the adapter is known to have been trained on another model.

    Known by the checksum that agentrl lays beside its adapters, by comparing the files where both models are folders here, or by the names
    where both are on the Hub. Shapes are checked when the adapter is loaded.
    """
    named = str(read_adapter(adapter).get("base_model_name_or_path") or "")
    cure = f"set model to the one that the adapter was trained on, or merge the adapter first: agentrl merge {adapter} --model MODEL"
    here, there = Path(model).is_dir(), Path(named).is_dir() if named else False
    recorded = _recorded(Path(adapter) / BASE)
    if here and recorded:
        if recorded != files_checksum(model):
            raise ConfigError(
                f"adapter {adapter!r} was trained on other weights than those in {model!r}: on {named!r}, whose files had the checksum "
                f"{recorded}; {cure}"
            )
    elif here and there:
        if Path(model).resolve() != Path(named).resolve() and files_checksum(model) != files_checksum(named):
            raise ConfigError(f"adapter {adapter!r} was trained on {named!r}, whose weights are not those in {model!r}; {cure}")
    elif named and not here and not there and not named.startswith(("/", ".")) and named != model:
        raise ConfigError(f"adapter {adapter!r} was trained on {named!r}, and model is {model!r}; {cure}")


def _recorded(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["weights"]) if path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"adapter file {path} does not read: {error!r}; remove it to go on without the check of the base") from error


def write_base(adapter: Path, model: str) -> None:
    """Lay the checksum of a model in a folder beside an adapter that was trained on it; nothing for a model on the Hub."""
    if model and Path(model).is_dir() and (checksum := files_checksum(model)):
        (adapter / BASE).write_text(json.dumps({"model": model, "weights": checksum}))


def files_checksum(folder: str) -> str:
    """XXH3 over the bytes of a model's weights files in the order of their names; empty where there are none."""
    files = sorted([*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.bin")])
    digest = xxhash.xxh3_128()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest() if files else ""


def check_tokenizer(adapter: str, model: str) -> None:
    """Raise `ConfigError` where a tokenizer lies beside the adapter and is not the model's; the message says how they differ."""
    if not any((Path(adapter) / name).is_file() for name in TOKENIZER_FILES):
        return
    from transformers import AutoTokenizer

    try:
        own, base = AutoTokenizer.from_pretrained(adapter), AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizers of adapter {adapter!r} and model {model!r} cannot be compared: {error}") from error
    found = tokenizer_differences(own, base)
    if found:
        raise ConfigError(
            f"the tokenizer beside adapter {adapter!r} is not that of model {model!r}: {'; '.join(found)} (the adapter's value first). "
            "Lay the adapter's tokenizer files into the model's folder where the vocabulary is the same, or choose the model it came from"
        )


def tokenizer_differences(left: Any, right: Any) -> list[str]:
    """How two tokenizers of transformers differ in ids, special tokens or template; empty where they make the same of a text."""
    found = []
    ids, others = left.get_vocab(), right.get_vocab()
    if len(ids) != len(others):
        found.append(f"{len(ids)} tokens and {len(others)}")
    moved = sorted((token for token in ids.keys() | others.keys() if ids.get(token) != others.get(token)), key=str)
    found += [f"token {token!r} is {ids.get(token, 'missing')} and {others.get(token, 'missing')}" for token in moved[:3]]
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(left, name) != getattr(right, name):
            found.append(f"{name} is {getattr(left, name)} and {getattr(right, name)}")
    if left.chat_template and left.chat_template != right.chat_template:
        found.append("the chat templates differ" if right.chat_template else "only the adapter's has a chat template")
    return found
