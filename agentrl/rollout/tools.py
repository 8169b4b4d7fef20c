"""A method or function as a tool: the schema that the model sees, and arguments as its type hints want them.

Schemas come from type hints and the Google-style docstring, through pydantic, or are given (`FunctionTool`). Runs in the environment's
process.
"""

from __future__ import annotations

import inspect
import json
import math
import typing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import docstring_parser
from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from agentrl.environment import tool_methods
from agentrl.errors import ConfigError
from agentrl.rollout.arguments import Unfit
from agentrl.rollout.given_schema import checked_schema, fitting
from agentrl.rollout.toolcalls import ToolCall, check_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentrl.environment import Environment, FunctionTool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A method or function as the model may call it."""

    name: str
    schema: dict[str, Any]
    """An OpenAI function schema: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    fit: Callable[[dict[str, Any]], dict[str, Any]]
    """From arguments that the schema takes to those that are called with. Raises `Unfit`."""
    call: Callable[..., Any]
    """What was described; a method is bound to the instance that it was read from."""
    timeout_s: float | None = None
    """Wall clock of one call, where it has a limit of its own."""
    max_output_chars: int | None = None
    """Where a longer result is cut, if it has a limit of its own."""

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the call. Raises `Unfit` with a message for the model."""
        call = check_call(ToolCall(name=self.name, arguments=dict(arguments)), [self.schema])
        if not isinstance(call, ToolCall):
            raise Unfit(call.detail)
        return self.fit(call.arguments)


def describe_tool(name: str, method: Callable[..., Any]) -> Tool:
    """Read a method or function as a tool. Raises `ConfigError` where its signature cannot be a schema."""
    document = docstring_parser.parse(inspect.getdoc(method) or "", style=docstring_parser.DocstringStyle.GOOGLE)
    texts = {param.arg_name: param.description for param in document.params}
    hints = _hints(name, method)
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in _signature(name, method).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"tool {name!r}: parameter {parameter} has no name that a model can give; a tool takes named parameters only")
        described: Any = Annotated[hints.get(parameter.name, Any), Field(description=texts.get(parameter.name) or None)]
        if parameter.default is parameter.empty:
            fields[parameter.name] = described
        else:
            fields[parameter.name] = NotRequired[described]
            defaults[parameter.name] = parameter.default
    arguments = _adapter(name, fields)
    parameters = arguments.json_schema(schema_generator=_Untitled)
    parameters.setdefault("properties", {})
    for key, value in defaults.items():
        if _is_json(value):
            parameters["properties"][key]["default"] = value
    description = "\n".join(text for text in (document.short_description, document.long_description) if text)
    limits = getattr(method, "agentrl_limits", {})
    return Tool(
        name=name,
        schema=_function_schema(name, description, parameters),
        fit=partial(_validated, arguments),
        call=method,
        timeout_s=_limit(name, "timeout_s", limits.get("timeout_s")),
        max_output_chars=_limit(name, "max_output_chars", limits.get("max_output_chars")),
    )


def describe_function_tool(tool: FunctionTool) -> Tool:
    """Read a tool whose schema is given. Raises `ConfigError` where that is no JSON schema of an object."""
    parameters = checked_schema(tool.name, tool.parameters)
    return Tool(
        name=tool.name,
        schema=_function_schema(tool.name, tool.description, parameters),
        fit=fitting(parameters),
        call=tool.call,
        timeout_s=_limit(tool.name, "timeout_s", tool.timeout_s),
        max_output_chars=_limit(tool.name, "max_output_chars", tool.max_output_chars),
    )


def describe_tools(environment: Environment) -> dict[str, Tool]:
    """The tools that are methods of an environment, by name."""
    return {name: describe_tool(name, method) for name, method in tool_methods(environment).items()}


def _function_schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _validated(adapter: TypeAdapter[dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return adapter.validate_python(arguments)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False)]
        raise Unfit("; ".join(faults)) from None
    except RecursionError:
        raise Unfit("arguments are nested too deeply") from None


def _limit(name: str, limit: str, value: Any) -> Any:
    allowed = {"timeout_s": "seconds, more than 0", "max_output_chars": "a count of characters, at least 1"}[limit]
    kinds = (int,) if limit == "max_output_chars" else (int, float)
    if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and value > 0):
        return value
    raise ConfigError(f"tool {name!r}: {limit} is {value!r}; allowed: {allowed}, or None for the run's own limit")


def _signature(name: str, method: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):
        raise ConfigError(f"tool {name!r}: {method!r} has no signature to read; wrap it in a function with typed parameters") from None


def _hints(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    # of a partial: those of what it calls; of an object that can be called: those of its __call__
    target = method
    while isinstance(target, partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise ConfigError(f"tool {name!r}: {error} in its type hints; import it outside of `if TYPE_CHECKING`") from None


def _adapter(name: str, fields: dict[str, Any]) -> TypeAdapter[dict[str, Any]]:
    # a TypedDict, not a model: parameters may then be called `schema`, `json` or `_x`
    make: Any = TypedDict
    arguments = make(name, fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    try:
        return TypeAdapter(arguments)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ConfigError(f"tool {name!r}: its type hints have no JSON schema: {str(error).splitlines()[0]}") from None


class _Untitled(GenerateJsonSchema):
    """Schemas without pydantic's titles, which only repeat names: every token of a schema is in every prompt."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        result = super().typed_dict_schema(schema)
        result.pop("title", None)
        return result


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
