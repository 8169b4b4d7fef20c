"""Plain sentences for what is wrong with a run file: which key, what was got, what is allowed, which key was meant."""

from __future__ import annotations

import types
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]
"""Where a value stands: `("learner", "betas", 1)`."""

FOREIGN = {
    "adam_beta1": "learner.betas",
    "adam_beta2": "learner.betas",
    "adam_epsilon": "learner.eps",
    "algo": "objective",
    "algorithm": "objective",
    "async_level": "max_staleness",
    "batch_size": "groups_per_step (tasks of a step) and group_size (rollouts of a task)",
    "bf16": "learner.dtype and engine.dtype",
    "dataset_name": "dataset",
    "env_id": "env",
    "environment": "env",
    "epsilon": "objective.clip_low",
    "epsilon_high": "objective.clip_high",
    "fp16": "learner.dtype and engine.dtype (float16 is not offered)",
    "generation_batch_size": "groups_per_step (tasks of a step) and group_size (rollouts of a task)",
    "gradient_accumulation_steps": "learner.tokens_per_micro_batch",
    "learning_rate": "learner.lr",
    "lora_alpha": "learner.lora.alpha",
    "lora_r": "learner.lora.rank",
    "lora_rank": "learner.lora.rank",
    "loss": "objective",
    "loss_type": "objective",
    "lr_scheduler_type": "learner.schedule",
    "max_async_level": "max_staleness",
    "max_completion_length": "sampling.max_tokens",
    "max_length": "engine.context_length",
    "max_model_len": "engine.context_length",
    "max_new_tokens": "sampling.max_tokens",
    "max_off_policy_steps": "max_staleness",
    "max_prompt_length": "engine.context_length",
    "max_seq_len": "engine.context_length",
    "max_steps": "steps",
    "micro_batch_size": "learner.tokens_per_micro_batch",
    "model_name": "model",
    "model_name_or_path": "model",
    "n_samples_per_prompt": "group_size",
    "num_epochs": "epochs",
    "num_generations": "group_size",
    "num_processes": "learner.ranks",
    "num_steps": "steps",
    "num_train_epochs": "epochs",
    "num_workers": "rollout.processes",
    "optim": "learner (AdamW is the only optimizer)",
    "output_dir": "output",
    "per_device_train_batch_size": "groups_per_step, group_size and learner.tokens_per_micro_batch",
    "peft_config": "learner.lora",
    "resume_from_checkpoint": "the flag --resume RUNDIR",
    "reward_funcs": "rewards",
    "reward_functions": "rewards",
    "rollouts_per_example": "group_size",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "train_batch_size": "groups_per_step (tasks of a step) and group_size (rollouts of a task)",
    "train_dataset": "dataset",
    "trainer": "objective",
    "use_peft": "learner.lora",
    "use_vllm": "engine.kind",
    "vllm": "engine.kind",
    "warmup_ratio": "learner.warmup_steps",
}
"""Names that other frameworks give to ours."""


def dotted(key: Key) -> str:
    """`learner.betas.1`."""
    return ".".join(str(part) for part in key)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model class of a field that is a section, optional ones included."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def field_at(model: type[BaseModel], key: Key) -> FieldInfo | None:
    """The field that a key names, or None where there is none."""
    section: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for part in key:
        if section is None:
            return None
        field = section.model_fields.get(str(part))
        if field is None:
            return None
        section = section_of(field)
    return field


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that a model reads, sections included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = section_of(field)
        if section is not None:
            keys.extend(known_keys(section, f"{prefix}{name}."))
    return keys


def suggest(key: Key, known: list[str]) -> str:
    """What to write instead of an unknown key, as the end of a sentence.

    Args:
        key: the unknown key.
        known: dotted keys that could have been meant.
    """
    leaf = str(key[-1])
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    if same_leaf:
        return f"; did you mean `{'` or `'.join(same_leaf)}`?"
    if leaf in FOREIGN:
        return f"; here it is called {FOREIGN[leaf]}"
    section = dotted(key[:-1])
    beside = [other for other in known if other.rpartition(".")[0] == section]
    near = _near(leaf, beside, cutoff=0.6) or _near(leaf, known, cutoff=0.75)
    if near:
        return f"; did you mean `{near}`?"
    place = f"of `{section}`" if section else "at the top"
    return f"; the keys {place} are {', '.join(other.rpartition('.')[2] for other in beside)}"


def _near(leaf: str, known: list[str], *, cutoff: float) -> str:
    leaves = {other.rpartition(".")[2]: other for other in reversed(known)}
    return next((leaves[name] for name in get_close_matches(leaf, leaves, n=1, cutoff=cutoff)), "")


def sentences(error: ValidationError, model: type[BaseModel], *, known: list[str], prefix: Key = ()) -> dict[Key, str]:
    """One plain sentence a key that pydantic refused, the key named in it.

    Args:
        error: what pydantic raised.
        model: the class it raised for.
        known: dotted keys that could have been meant by an unknown one.
        prefix: where the model stands in the run file.
    """
    found: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_known_part(model, detail), []).append(detail)
    result: dict[Key, str] = {}
    for key, details in found.items():
        whole = (*prefix, *key)
        if details[0]["type"] == "extra_forbidden":
            result[whole] = f"unknown key `{dotted(whole)}`{suggest(whole, known)}"
        else:
            result[whole] = _sentence(model, key, dotted(whole), details)
    return result


def _known_part(model: type[BaseModel], detail: ErrorDetails) -> Key:
    """The location without the names of union members and validators that pydantic appends."""
    location = detail["loc"]
    if detail["type"] == "extra_forbidden" or (detail["type"] == "missing" and not isinstance(location[-1], int)):
        return location
    if detail["type"] == "missing":  # of a list with a length of its own
        location = location[:-1]
    for length in range(len(location), 0, -1):
        head = location[:length]
        names = [part for part in head if isinstance(part, str)]
        if field_at(model, tuple(names)) is not None and head[: len(names)] == tuple(names):
            return head
    return location


def _sentence(model: type[BaseModel], key: Key, name: str, details: list[ErrorDetails]) -> str:
    first = details[0]
    field = field_at(model, tuple(part for part in key if isinstance(part, str)))
    if first["type"] == "missing" and field is not None and not field.is_required():
        return f"`{name}` must be a list of {len(field.default)}, such as {list(field.default)}"
    if first["type"] == "missing":
        said = f": {field.description}" if field is not None and field.description else ""
        return f"`{name}` is missing{said}"
    if first["type"] == "value_error":
        return f"`{name}`: {first['ctx']['error']}" if name else str(first["ctx"]["error"])
    allowed = [_allowed(detail, field) for detail in details]
    if field is not None and type(None) in get_args(field.annotation) and len(key) == len([part for part in key if isinstance(part, str)]):
        allowed.append("null")
    return f"`{name}` got {shown(first['input'])}; it must be {' or '.join(dict.fromkeys(allowed))}{_hint(first)}"


def _allowed(detail: ErrorDetails, field: FieldInfo | None) -> str:
    context: Mapping[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "string_type":
            return "text"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "list_type":
            return "a list such as [a, b]"
        case "tuple_type" if field is not None:
            return f"a list such as {list(field.default)}"
        case "dict_type" | "model_type" | "model_attributes_type":
            section = section_of(field) if field is not None else None
            return (
                f"a section with keys such as {', '.join(list(section.model_fields)[:4])}" if section else "a section with keys of its own"
            )
        case "literal_error":
            return _choices(field) if field is not None else str(context["expected"])
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "greater_than":
            return f"more than {context['gt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "too_long" if field is not None:
            return f"a list of {len(field.default)}, such as {list(field.default)}"
        case _:
            return detail["msg"][:1].lower() + detail["msg"][1:]


def _choices(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType) else (field.annotation,)
    values = [str(value) for kind in kinds for value in get_args(kind)]
    return f"one of {', '.join(values)}" if len(values) > 1 else values[0]


def _hint(detail: ErrorDetails) -> str:
    value = detail["input"]
    match detail["type"], value:
        case (("int_type" | "float_type"), str()):
            try:
                float(value)
            except ValueError:
                return ""
            return " (without quotes)"
        case "int_type", float() if value.is_integer():
            return f" (write {int(value)})"
        case "string_type", bool() | int() | float():
            return f" (write it in quotes: '{shown(value).partition(' ')[0]}')"
        case "list_type", str():
            return f" (write [{value}])"
    return ""


def shown(value: object) -> str:
    """A value as a user wrote it, with its type where the two could be confused."""
    match value:
        case None:
            return "null"
        case bool():
            return f"{str(value).lower()} (a boolean)"
        case str():
            text = value if len(value) <= 60 else value[:57] + "..."
            return f"'{text}' (text)"
        case int() | float():
            return f"{value}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "a section with the keys " + ", ".join(map(str, value)) if value else "an empty section"
        case _:
            return f"a {type(value).__name__}"
