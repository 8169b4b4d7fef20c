"""Run files: YAML 1.2 with `--set` overrides in, a validated `RunConfig` out, and back.

Every mistake is a `ConfigError` that names the file and line (or the flag), the key, the value that was got and what is allowed; all
mistakes of a file are told at once.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from agentrl import objectives, registry
from agentrl.config import RunConfig
from agentrl.config_errors import Key, dotted, known_keys, sentences, shown
from agentrl.errors import ConfigError
from agentrl.needs import mistakes_of_needs
from agentrl.offline_needs import mistakes_of_mixture, mistakes_of_offline, mistakes_of_online
from agentrl.teachers import mistakes_of_teachers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NULL_TAG = "tag:yaml.org,2002:null"


@dataclass(slots=True)
class _Source:
    """The raw values of a run and where each came from."""

    values: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    lines: dict[Key, int] = field(default_factory=dict)
    """1-based lines of the keys in the file."""
    flags: dict[Key, str] = field(default_factory=dict)
    """Keys that the command line set, and how."""

    def line(self, key: Key) -> float:
        """The line of a key, or of the section around it; infinite where the file has neither."""
        return next((self.lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in self.lines), math.inf)

    def where(self, key: Key) -> str:
        """Start of a sentence: the flag, or the file and line, that set a key or the section around it."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.flags:
                return f"{self.flags[key[:length]]}: "
            if key[:length] in self.lines:
                return f"{self.file}, line {self.lines[key[:length]]}: "
        return f"{self.file}: " if self.file else ""


def load(path: Path | str | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a run file and apply the command line to it.

    Args:
        path: the YAML file; without one the flags must name what has no default.
        overrides: `a.b=c` each, the value in YAML; the last one wins, over the flags too.
        flags: top-level keys with values that are not None, over the file. Naming another objective drops the file's options for it.

    Raises:
        ConfigError: one line a mistake.
    """
    source = _Source() if path is None else _read(Path(path))
    for name, value in (flags or {}).items():
        if value is not None:
            _set_flag(source, name, _as_yaml(value))
    for override in overrides:
        _override(source, override)
    return _validate(source)


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """Validate a run given as Python values: the keys of a run file, tuples for lists, paths for text. Raises `ConfigError`."""
    return _validate(_Source(values=_as_yaml(values)))


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML, in the schema's order; `load` of it gives an equal configuration."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1_000_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel's hint allows only None
    text = io.StringIO()
    yaml.dump(config.model_dump(mode="json"), text)
    return text.getvalue()


def check(config: RunConfig) -> RunConfig:
    """Check what takes more than one section to see, and write the objective's defaults out. Raises `ConfigError`."""
    resolved, mistakes = _resolve(config)
    if mistakes:
        raise ConfigError("\n".join(mistakes.values()))
    return resolved


def _validate(source: _Source) -> RunConfig:
    mistakes = dict(_not_plain(source.values))
    try:
        config = RunConfig.model_validate_json(json.dumps(source.values, default=str), strict=True)
    except ValidationError as error:
        mistakes = sentences(error, RunConfig, known=_known_keys()) | mistakes
    else:
        if not mistakes:
            config, mistakes = _resolve(config)
    if mistakes:
        ordered = sorted(mistakes.items(), key=lambda item: source.line(item[0]))
        raise ConfigError("\n".join(source.where(key) + text for key, text in ordered))
    return config


def _resolve(config: RunConfig) -> tuple[RunConfig, dict[Key, str]]:
    """The config with its objective's defaults, and what is wrong with it."""
    for index, name in enumerate(config.imports):  # they may register the objective that is looked up below
        try:
            registry.import_module(name)
        except ConfigError as error:
            return config, {("imports", index): str(error)}
    mistakes: dict[Key, str] = {}
    name = config.objective["name"]
    if not isinstance(name, str):
        return config, {("objective", "name"): f"`objective.name` got {shown(name)}; it must be text"}
    try:
        objective = objectives.get(name)
        options = objective.config.model_validate_json(json.dumps(config.objective), strict=True)
    except ConfigError as error:
        # nobody knows whether it learns from rewards
        return config, dict(_mistakes_of_source(config, rewards=False)) | {("objective", "name"): str(error)}
    except ValidationError as error:
        known = [f"objective.{key}" for key in known_keys(objective.config)] + known_keys(RunConfig)
        source = {} if objective.data is not None else dict(_mistakes_of_source(config))
        return config, source | sentences(error, objective.config, known=known, prefix=("objective",))
    resolved: dict[str, Any] = {"objective": options.model_dump(mode="json")}
    needs = objective.needs(options)
    mistakes |= dict(mistakes_of_teachers(config, needs, name))
    if not objective.is_offline(options):
        mistakes |= dict(_mistakes_of_source(config, rewards=needs.rewards)) | dict(mistakes_of_online(config, name))
        mistakes |= dict(mistakes_of_needs(config, needs, name))
        mistakes |= dict(mistakes_of_mixture(config, needs))
        resolved["steps"] = config.num_steps
    else:
        mistakes |= dict(mistakes_of_offline(config, needs, name))
    return config.model_copy(update=resolved), mistakes


def _mistakes_of_source(config: RunConfig, *, rewards: bool = True) -> Iterator[tuple[Key, str]]:
    if config.envs and (config.env is not None or config.dataset is not None):
        yield ("envs",), "`envs` and `env` or `dataset` are both set; a run has one source of tasks: remove one of them"
    if config.env is None and config.dataset is None and not config.envs:
        yield ("env",), "there is nothing to train on: set `env` (see `agentrl env list`), or `dataset` with `rewards`"
    if config.env is not None and config.dataset is not None:
        yield ("dataset",), "`env` and `dataset` are both set; a run has one source of tasks: remove one of them"
    elif rewards and config.dataset is not None and not config.rewards and config.judge is None:
        yield ("dataset",), "`dataset` needs `rewards`: a list of file.py:function or package.module:function"
    if config.judge is not None and config.dataset is None:
        yield ("judge",), "`judge` compares rollouts of a `dataset`, and none is set; an environment compares its own by `compare`"
    if config.engine.transport == "lora" and config.learner.lora is None:
        yield (
            ("engine", "transport"),
            "`engine.transport` is lora and no adapter is trained: set `learner.lora` (`{}` takes its defaults), or auto",
        )
    if config.rewards and config.dataset is None:
        yield ("rewards",), "`rewards` score the rows of a `dataset`, and none is set; an environment scores its own episodes"
    if config.reward_weights and len(config.reward_weights) != len(config.rewards):
        count = f"{len(config.reward_weights)} weights for {len(config.rewards)} rewards"
        yield ("reward_weights",), f"`reward_weights` has {count}; give one for each of `rewards`, in their order, or none"


def _known_keys() -> list[str]:
    """Keys of the schema and of every objective."""
    options = {f"objective.{key}": None for row in objectives.registered().values() for key in known_keys(row.config)}
    return [*known_keys(RunConfig), *options]


def _read(path: Path) -> _Source:
    source = _Source(file=str(path))
    empty: set[Key] = set()
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the run file {path} is not UTF-8 text (byte {error.start})") from None
    try:
        root = YAML(typ="safe", pure=True).compose(text)
        _survey(root, (), source.lines, empty)  # before the values are used: it finds what contains itself
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{path}{line}: {(error.problem or str(error)).strip()}") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply, or an alias in it contains itself") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if values is None:
        return source
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a run file is a mapping of keys to values, got {shown(values)}")
    if empty:
        raise ConfigError("\n".join(source.where(key) + _no_value(dotted(key)) for key in sorted(empty, key=source.line)))
    source.values = values
    return source


def _no_value(name: str) -> str:
    return f"`{name}` has no value: remove it, or write {{}} for an empty section and null for none"


def _survey(node: Node, key: Key, lines: dict[Key, int], empty: set[Key]) -> None:
    """Collect the line of every key, and the keys without a value: `lora:` could mean the defaults or none."""
    if isinstance(node, ScalarNode) and node.tag == NULL_TAG and node.value == "":
        empty.add(key)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            _survey(item, (*key, index), lines, empty)
    elif isinstance(node, MappingNode):
        for name, value in node.value:
            inner = (*key, str(name.value))
            lines[inner] = name.start_mark.line + 1
            _survey(value, inner, lines, empty)


def _set_flag(source: _Source, name: str, value: Any) -> None:
    if name == "objective":
        current = source.values.get(name)
        if isinstance(current, dict) and current.get("name") == value:
            value = current
    source.values[name] = value
    source.flags[(name,)] = f"--{name.replace('_', '-')}"


def _override(source: _Source, text: str) -> None:
    """Apply `a.b=c`, making the sections on the way."""
    name, equals, raw = text.partition("=")
    parts = tuple(part.strip() for part in name.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: write --set key=value, with dots between a section and its key: --set learner.lr=1e-5")
    if not raw.strip():
        raise ConfigError(f"--set {text}: {_no_value(name)}")
    try:
        value = YAML(typ="safe", pure=True).load(raw)
    except (YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"--set {text}: the value is not YAML ({problem}); quote text that holds special characters") from None
    section = source.values
    for depth, part in enumerate(parts[:-1]):
        inner = section.get(part)
        if depth == 0 and part == "objective":
            inner = {"name": inner or "grpo"} if inner is None or isinstance(inner, str) else inner
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: `{'.'.join(parts[: depth + 1])}` is {shown(inner)} and has no keys")
        section[part] = dict(inner)
        section = section[part]
    section[parts[-1]] = value
    source.flags[parts] = f"--set {text}"


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _as_yaml(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_yaml(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _not_plain(value: object, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """What YAML can say and a run file may not: infinities, dates, binary data."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, f"`{dotted(key)}` got {value}; it must be finite"
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_plain(inner, (*key, str(name)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _not_plain(inner, (*key, index))
    elif value is not None and not isinstance(value, str | bool | int | float):
        yield key, f"`{dotted(key)}` got {shown(value)}; write text in quotes"
