"""Environments by name: the decorator that registers one, and the specs that name one.

A spec is a registered name, `file.py:Name`, `package.module:Name` or `adapter:NAME` for an environment of another library, each with
optional arguments: `countdown?numbers=4`, `gymnasium:FrozenLake-v1?map_name=8x8`; or the URL of an environment server.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agentrl.environment import Environment
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

EnvironmentFactory = Callable[..., Environment]
F = TypeVar("F", bound=EnvironmentFactory)

_environments: dict[str, EnvironmentFactory] = {}
ADAPTERS = {
    "gymnasium": "agentrl.envs.adapters.gymnasium_text:gymnasium_text",
    "mcp": "agentrl.envs.adapters.mcp_tools:mcp_tools",
    "openenv": "agentrl.envs.adapters.openenv_client:openenv_client",
    "reasoning-gym": "agentrl.envs.adapters.reasoning_tasks:reasoning_tasks",
    "textarena": "agentrl.envs.adapters.textarena_games:textarena_games",
    "verifiers": "agentrl.envs.adapters.verifiers_tasks:verifiers_tasks",
}
"""What comes before the first `:` of a spec -> `module:factory`, called as `factory(NAME, **arguments)`; installed packages add their own
through the entry-point group `agentrl.adapters`. Each module imports its library only when it is called."""

_importing: list[str] = []
"""Modules whose import has begun and not ended, outermost first."""


def register(name: str) -> Callable[[F], F]:
    """Register an environment class, or a function that returns an environment, under a name."""
    if not name or any(mark in name for mark in ":?/ "):
        raise ConfigError(f"environment name {name!r} may not be empty or hold any of ':?/ '")

    def keep(factory: F) -> F:
        known = _environments.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (factory.__module__, factory.__qualname__):
            raise ConfigError(f"environment {name!r} is already registered by {known.__module__}; choose another name")
        _environments[name] = factory
        return factory

    return keep


def registered() -> dict[str, EnvironmentFactory]:
    """Every environment that has a name: our own, those of installed packages, and those registered in this process.

    Raises `ConfigError` where an installed package's does not load.
    """
    for point in importlib.metadata.entry_points(group="agentrl.envs"):
        _load_point(point)
    return dict(sorted(_environments.items()))


def adapters() -> dict[str, str]:
    """What may come before the first `:` of a spec, each with its `module:factory`: our own, and those of installed packages."""
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="agentrl.adapters")}
    return {**points, **ADAPTERS}


def _load_point(point: importlib.metadata.EntryPoint) -> None:
    if point.name in _environments:
        return
    try:
        _environments[point.name] = point.load()
    except (Exception, SystemExit) as error:
        package = point.dist.name if point.dist is not None else "?"
        said = f"environment {point.name!r} of the installed package {package} does not load"
        raise ConfigError(f"{said}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A parsed environment spec."""

    target: str
    arguments: dict[str, Any]

    @staticmethod
    def parse(text: str) -> Spec:
        """Split `name?key=value&key=value`; values are YAML (`4` is a number, `true` a boolean, `[1, 2]` a list).

        As in a URL, `+` is a space and `%2B` a plus. A target with `://` may have a query of its own: there the last `?` counts.
        """
        target, _, query = text.partition("?")
        if "://" in target and "?" in query:
            target, _, query = text.rpartition("?")
        yaml = YAML(typ="safe", pure=True)
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
            arguments = {key: yaml.load(value) for key, value in pairs}
        except (ValueError, YAMLError) as error:
            said = getattr(error, "problem", None) or error
            raise ConfigError(f"environment spec {text!r}: arguments after '?' are written key=value&key=value ({said})") from None
        return Spec(target=target, arguments=arguments)


def load(text: str) -> EnvironmentFactory:
    """Find the factory that a spec names, its arguments bound. Raises `ConfigError` saying what was tried and what exists."""
    spec = Spec.parse(text)
    factory, given = _found(spec.target)

    def build() -> Environment:
        _check_arguments(text, partial(factory, *given), spec.arguments)
        environment = factory(*given, **spec.arguments)
        if not isinstance(environment, Environment):
            raise ConfigError(
                f"environment {text!r} gave {environment!r:.80}, of type {type(environment).__name__}; "
                "it must be an agentrl.Environment, or a function that returns one"
            )
        return environment

    build.__doc__ = factory.__doc__
    return build


def _found(target: str) -> tuple[EnvironmentFactory, tuple[str, ...]]:
    """The factory of a target, and what it is called with beside the arguments."""
    if target.startswith(("http://", "https://")):
        return _from_path("agentrl.envs.remote:remote"), (target,)
    prefix, colon, name = target.partition(":")
    if not colon:
        return _by_name(target), ()
    known = adapters()
    if prefix in known:
        if not name:
            raise ConfigError(f"environment {target!r}: write {prefix}:NAME, the environment's name in that library")
        return _from_path(known[prefix]), (name,)
    near = get_close_matches(prefix, known, n=1)
    try:
        return _from_path(target), ()
    except ConfigError as error:
        if not near:
            raise
        raise ConfigError(f"{error}; did you mean {near[0]}:{name}?") from error


def _check_arguments(text: str, factory: EnvironmentFactory, arguments: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in types have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = ", ".join(map(str, signature.parameters.values())) or "none"
        raise ConfigError(f"environment {text!r} does not accept its arguments {arguments}: {error}; it takes: {takes}") from None


def import_module(name: str) -> ModuleType:
    """Import a module by dotted name, or a file by its path; a file is imported once a process.

    Raises `ConfigError` for whatever stops the import, `sys.exit` in the module included.
    """
    _importing.append(name)
    try:
        return _import_file(name) if name.endswith(".py") else _import_named(name)
    finally:
        _importing.pop()


def refuse_while_importing(what: str) -> None:
    """Raise `ConfigError` where a module that is being imported calls for a run: each process of that run would import it again."""
    if _importing:
        raise ConfigError(
            f"{what} was called while {_importing[0]} was being imported, which every process of a run does; "
            'put the call under `if __name__ == "__main__":`'
        )


def _import_named(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigError:
        raise
    except ImportError as error:
        raise ConfigError(f"cannot import {name!r}: {error}; give a dotted module name, or a path that ends in .py") from error
    except (Exception, SystemExit) as error:
        raise _broken_import(name, error) from error


def _import_file(name: str) -> ModuleType:
    path = Path(name).resolve()
    if not path.is_file():
        raise ConfigError(f"cannot import {name!r}: there is no file {path}")
    key = f"_agentrl_file_{path.stem}_{abs(hash(str(path))):x}"
    if key in sys.modules:
        return sys.modules[key]
    described = importlib.util.spec_from_file_location(key, path)
    if described is None or described.loader is None:
        raise ConfigError(f"cannot import {path}: it is not a Python file")
    module = importlib.util.module_from_spec(described)
    sys.modules[key] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what lies beside the file can be imported from it, as in a script
    try:
        described.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if isinstance(error, Exception | SystemExit) and not isinstance(error, ConfigError):
            raise _broken_import(str(path), error) from error
        raise
    return module


def _broken_import(name: str, error: BaseException) -> ConfigError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({frame.filename}:{frame.lineno})"  # a syntax error says its own
    return ConfigError(f"importing {name} failed: {type(error).__name__}: {error}{place}")


def _from_path(target: str) -> EnvironmentFactory:
    where, _, name = target.rpartition(":")
    if not where or not name:
        raise ConfigError(f"environment {target!r}: write file.py:Name or package.module:Name")
    module = import_module(where)
    try:
        factory: Any = getattr(module, name)
    except AttributeError:
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
        names = [key for key, value in own.items() if isinstance(value, type) and issubclass(value, Environment)]
        raise ConfigError(f"{where} has no {name!r}; environments in it: {', '.join(names) or 'none'}") from None
    if not callable(factory):
        got = f"{factory!r:.80}, of type {type(factory).__name__}"
        raise ConfigError(f"{target} is {got}; it must be an environment class or a function that returns one")
    return cast("EnvironmentFactory", factory)


def _by_name(name: str) -> EnvironmentFactory:
    points = {point.name: point for point in importlib.metadata.entry_points(group="agentrl.envs")}
    if name in points:
        _load_point(points[name])
    if name in _environments:
        return _environments[name]
    known = sorted({*_environments, *points})
    if name in adapters():
        raise ConfigError(f"environment {name!r}: write {name}:NAME, the environment's name in that library")
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    own = f"{name}:Name" if name.endswith(".py") else "file.py:Name or package.module:Name"
    raise ConfigError(f"no environment is registered as {name!r}{hint} Known: {', '.join(known)}. For one of your own write {own}")
