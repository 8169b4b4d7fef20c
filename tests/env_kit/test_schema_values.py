"""Values that fit schemas, and calls that do not."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agentrl.env_kit.schema_values import bad_calls, fitting_value, random_call
from agentrl.rollout.toolcalls import Malformed, ToolCall, read_calls

SCHEMAS = [
    {"type": "string"},
    {"type": "string", "minLength": 3, "maxLength": 4},
    {"type": "integer", "minimum": 5, "maximum": 6},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
    {"type": "integer", "multipleOf": 5},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": ["boolean", "null"]},
    {"enum": ["a", 2, None]},
    {"const": {"x": 1}},
    {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}]},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "maxItems": 2},
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/b"}},
        "required": ["b"],
        "$defs": {"b": {"type": "null"}},
    },
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}}},
    True,
    {},
]


@given(schema=st.sampled_from(SCHEMAS), seed=st.integers(0, 1000))
def test_values_fit(schema, seed):
    Draft202012Validator(schema).validate(fitting_value(schema, random.Random(seed)))


def tool(**properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": "look", "parameters": parameters}}


@given(seed=st.integers(0, 200))
def test_random_calls_can_be_made(seed):
    tools = [tool(a={"type": "integer"}, b={"type": "array", "items": {"type": "string"}})]
    (call,) = read_calls(random_call(tools, random.Random(seed)), tools)
    assert isinstance(call, ToolCall), call


@pytest.mark.parametrize("kind", ["string", "integer", "number", "boolean", "array", "object"])
def test_bad_calls_are_read_one_by_one_and_few_can_be_made(kind):
    tools = [tool(x={"type": kind})]
    texts = bad_calls(tools[0], random.Random(0))
    read = [read_calls(text, tools) for text in texts]
    assert all(len(calls) == 1 for calls in read)
    assert sum(isinstance(call, Malformed) for (call,) in read) > len(texts) / 2
    assert len(read_calls("\n".join(texts), tools)) == len(texts)


def test_bad_calls_leave_out_what_is_needed_and_add_what_is_unknown():
    texts = bad_calls(tool(a={"type": "integer"}, b={"type": "integer"}), random.Random(0))
    given_arguments = [
        json.loads(text[11:-12])["arguments"] for text in texts if '"agentrl_unknown"' in text or (text.count('"b"') == 0 and '"a"' in text)
    ]
    assert any("agentrl_unknown" in arguments for arguments in given_arguments)
    assert any(set(arguments) == {"a"} for arguments in given_arguments)
