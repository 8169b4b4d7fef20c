"""A method as a tool: the schema that the model sees, and arguments as the method's type hints want them.

Schemas come from type hints and the Google-style docstring, through pydantic. Runs in the environment's process.
"""

from __future__ import annotations

import inspect
import json
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import docstring_parser
from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from agentrl.environment import tool_methods
from agentrl.errors import ConfigError
from agentrl.rollout.arguments import Unfit
from agentrl.rollout.toolcalls import ToolCall, check_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentrl.environment import Environment


@dataclass(frozen=True, slots=True)
class Tool:
    """A method as the model may call it."""

    name: str
    schema: dict[str, Any]
    """An OpenAI function schema: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    arguments: TypeAdapter[dict[str, Any]]

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the method. Raises `Unfit` with a message for the model."""
        call = check_call(ToolCall(name=self.name, arguments=dict(arguments)), [self.schema])
        if not isinstance(call, ToolCall):
            raise Unfit(call.detail)
        try:
            return self.arguments.validate_python(call.arguments)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False)]
            raise Unfit("; ".join(faults)) from None


def describe_tool(name: str, method: Callable[..., Any]) -> Tool:
    """Read a method as a tool. Raises `ConfigError` where its signature cannot be a schema."""
    document = docstring_parser.parse(inspect.getdoc(method) or "", style=docstring_parser.DocstringStyle.GOOGLE)
    texts = {param.arg_name: param.description for param in document.params}
    hints = _hints(name, method)
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(method).parameters.values():
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
    schema = {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
    return Tool(name, schema, arguments)


def describe_tools(environment: Environment) -> dict[str, Tool]:
    """The tools of an environment by name."""
    return {name: describe_tool(name, method) for name, method in tool_methods(environment).items()}


def _hints(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(method, include_extras=True)
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
