"""Tools with a schema of their own: it is checked once, and all of it holds."""

from __future__ import annotations

import pytest

from agentrl.environment import FunctionTool
from agentrl.errors import ConfigError
from agentrl.rollout.arguments import Unfit
from agentrl.rollout.tools import describe_function_tool


def given(parameters, name="look", **more):
    return describe_function_tool(FunctionTool(name=name, description="Look.", parameters=parameters, call=print, **more))


def test_schema_is_shown_as_it_is_and_held_against_arguments():
    parameters = {
        "type": "object",
        "properties": {
            "days": {"type": "integer", "minimum": 1},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        },
        "required": ["days"],
        "additionalProperties": False,
        "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
    }
    tool = given(parameters, timeout_s=2.5, max_output_chars=10)
    assert tool.schema == {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": parameters}}
    assert (tool.call, tool.timeout_s, tool.max_output_chars) == (print, 2.5, 10)
    assert tool.validate({"days": "3", "tags": '["a", "b"]'}) == {"days": 3, "tags": ["a", "b"]}
    for arguments, part in (
        ({}, "lack 'days'"),
        ({"days": 0}, "days: 0 is less than the minimum of 1"),
        ({"days": 1, "tags": ["A"]}, "tags.0: 'A' does not match"),
        ({"days": 1, "tags": ["a", "b", "c"]}, "tags: "),
        ({"days": 1, "more": 1}, "unknown 'more'"),
    ):
        with pytest.raises(Unfit) as caught:
            tool.validate(arguments)
        assert part in str(caught.value)


def test_no_parameters_at_all():
    assert given({}).schema["function"]["parameters"] == {"type": "object", "properties": {}}
    assert given({}).validate({"any": [1]}) == {"any": [1]}


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"type": "string"}, "have type 'string'; allowed: 'object'"),
        ({"type": "dict"}, "have type 'dict'"),
        ({"properties": {"x": {"type": "float"}}}, "no JSON schema"),
        ({"properties": {"x": {"$ref": "http://127.0.0.1:9/schema"}}}, "refer to 'http://127.0.0.1:9/schema'"),
        ({"properties": {"x": {"$ref": "#/$defs/gone"}}}, "refer to '#/$defs/gone'"),
    ],
)
def test_schemas_that_cannot_be_used(parameters, part):
    with pytest.raises(ConfigError, match="tool 'look'") as caught:
        given(parameters)
    assert part in str(caught.value)


def test_a_tool_needs_a_name():
    with pytest.raises(ConfigError, match="a tool is called ''"):
        given({}, name="")


@pytest.mark.parametrize("limits", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"max_output_chars": 1.5}, {"max_output_chars": True}])
def test_limits_are_checked(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        given({}, **limits)
