"""Plain sentences for what is wrong with a run file: which key, what was got, what is allowed, which key was meant."""

from __future__ import annotations

import re
import types
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from agentrl.foreign_names import FOREIGN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]
"""Where a value stands: `("learner", "betas", 1)`."""


def dotted(key: Key) -> str:
    """`learner.betas.1`."""
    return ".".join(str(part) for part in key)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model class of a field that is a section, optional ones included; a list or a mapping of sections is none."""
    if get_origin(field.annotation) in (list, dict):
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def sections_in(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """The model classes of a field that is a list of sections, by what their `name` says; empty for any other field."""
    kinds: dict[str, type[BaseModel]] = {}
    if field is not None and get_origin(field.annotation) is list:
        for kind in get_args(_bare(get_args(field.annotation)[0])):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and "name" in kind.model_fields:
                kinds[str(kind.model_fields["name"].default)] = kind
    return kinds


def section_within(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model class of a field that holds sections of one class by name or by number; None for any other field."""
    if field is None or get_origin(field.annotation) not in (list, dict):
        return None
    kind = get_args(field.annotation)[-1]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


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
    found: dict[Key, tuple[type[BaseModel], Key, list[ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        kind, section, inside = _innermost(model, detail["loc"])
        inside = _known_part(kind, inside, detail) or _begun_with(kind, detail)
        found.setdefault((*section, *inside), (kind, inside, []))[2].append(detail)
    result: dict[Key, str] = {}
    for key, (kind, inside, details) in found.items():
        whole = (*prefix, *key)
        if details[0]["type"] == "extra_forbidden":
            beside = [dotted((*whole[:-1], name)) for name in kind.model_fields] if kind is not model else []
            result[whole] = f"unknown key `{dotted(whole)}`{suggest(whole, [*beside, *known])}"
        else:
            result[whole] = _sentence(kind, inside, dotted(whole), details)
    return result


def _innermost(model: type[BaseModel], location: Key) -> tuple[type[BaseModel], Key, Key]:
    """The section of several that an error lies in: its class, its key, and the place within it; else the model's own."""
    for length in range(1, len(location) - 1):
        field = field_at(model, location[:length])
        within = section_within(field)
        if within is not None:
            return within, location[: length + 1], location[length + 1 :]
        kinds = sections_in(field)
        kind = kinds.get(str(location[length + 1]))  # pydantic writes which kind it took the section for
        if kind is not None and isinstance(location[length], int):
            return kind, location[: length + 1], location[length + 2 :]
    return model, (), location


def _known_part(model: type[BaseModel], location: Key, detail: ErrorDetails) -> Key:
    """The location without the names of union members and validators that pydantic appends."""
    if detail["type"] == "extra_forbidden" or (detail["type"] == "missing" and not isinstance(location[-1], int)):
        return location
    if detail["type"] == "union_tag_invalid":
        return (*location, "name")
    if detail["type"] == "missing":  # of a list with a length of its own
        location = location[:-1]
    for length in range(len(location), 0, -1):
        head = location[:length]
        names = tuple(part for part in head if isinstance(part, str))
        field = field_at(model, names)
        if field is not None and head[: len(names)] == names:
            return location[: length + 1] if _is_mapping(field) else head
    return location


def _begun_with(model: type[BaseModel], detail: ErrorDetails) -> Key:
    """The key that the first word of what a section as a whole says is: that is where it can be mended."""
    first = re.match(r"\w*", str(detail.get("ctx", {}).get("error", "")))
    return (first[0],) if first and first[0] in model.model_fields else ()


def _is_mapping(field: FieldInfo) -> bool:
    return any(get_origin(_bare(kind)) is dict for kind in (field.annotation, *get_args(field.annotation)))


def _bare(annotation: Any) -> Any:
    """A type without what `Annotated` adds to it."""
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _sentence(model: type[BaseModel], key: Key, name: str, details: list[ErrorDetails]) -> str:
    first = details[0]
    field = field_at(model, tuple(part for part in key if isinstance(part, str)))
    if first["type"] == "missing" and field is not None and not field.is_required():
        return f"`{name}` must be a list of {len(field.default)}, such as {list(field.default)}"
    if first["type"] == "missing":
        said = f": {field.description}" if field is not None and field.description else ""
        return f"`{name}` is missing{said}"
    if first["type"] == "value_error":
        said = str(first["ctx"]["error"]).removeprefix(f"{key[-1]}: " if key else "")
        return f"`{name}`: {said}" if name else said
    kinds = sections_in(field)
    if first["type"] == "union_tag_not_found":
        return f"`{name}` has no `name`; it must be one of {', '.join(kinds)}"
    if first["type"] == "union_tag_invalid":
        named, kinds = first["input"]["name"], sections_in(field_at(model, key[:-2]))
        return f"`{name}` got {shown(named)}; it must be one of {', '.join(kinds)}{_meant(named, kinds)}"
    allowed = [_allowed(detail, field) for detail in details]
    if field is not None and type(None) in get_args(field.annotation) and len(key) == len([part for part in key if isinstance(part, str)]):
        allowed.append("null")
    said = f"`{name}` got {shown(first['input'])}; it must be {' or '.join(dict.fromkeys(allowed))}{_hint(first, kinds)}"
    return f"{said}: {' '.join(field.description.split())}" if field is not None and _is_fixed(field) and field.description else said


def _allowed(detail: ErrorDetails, field: FieldInfo | None) -> str:
    context: Mapping[str, Any] = detail.get("ctx", {})
    kinds = sections_in(field)
    match detail["type"]:
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "string_type":
            return "text"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "none_required":
            return "null"
        case "list_type":
            return f"a list such as [{{name: {next(iter(kinds))}}}]" if kinds else "a list such as [a, b]"
        case "tuple_type" if field is not None:
            return f"a list such as {list(field.default)}"
        case "dict_type" | "model_type" | "model_attributes_type":
            if kinds:
                return f"a section with a `name`, one of {', '.join(kinds)}"
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
        case "too_short" if "min_length" in context and context["min_length"] == 1:
            return "something that is not empty"
        case "too_long" if field is not None:
            return f"a list of {len(field.default)}, such as {list(field.default)}"
        case _:
            return detail["msg"][:1].lower() + detail["msg"][1:]


def _is_fixed(field: FieldInfo) -> bool:
    """Whether it takes one value alone: its docstring then says why."""
    return field.annotation is types.NoneType or (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1)


def _meant(name: object, kinds: Mapping[str, object]) -> str:
    near = get_close_matches(str(name), kinds, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _choices(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType) else (field.annotation,)
    if get_origin(field.annotation) is list:  # of such words
        kinds = get_args(field.annotation)
    values = [str(value) for kind in kinds if get_origin(kind) is not list for value in get_args(kind)]
    return f"one of {', '.join(values)}" if len(values) > 1 else values[0]


def _hint(detail: ErrorDetails, kinds: Mapping[str, object]) -> str:
    value = detail["input"]
    match detail["type"], value:
        case (("dict_type" | "model_type" | "model_attributes_type"), str()) if value in kinds:
            return f" (write {{name: {value}}})"
        case ("list_type", str()) if value in kinds:
            return f" (write [{{name: {value}}}])"
        case ("list_type", dict()) if value.get("name") in kinds:
            return " (put it in brackets, or a dash before it)"
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
