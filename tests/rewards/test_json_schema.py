from __future__ import annotations

import json

import pytest

from agentrl.rewards.json_schema import fits, valid_json

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def of(function, *texts):
    return function(prompts=[""] * len(texts), completions=list(texts), completion_ids=[[]] * len(texts))


@pytest.mark.parametrize(
    ("text", "is_json", "does_fit"),
    [
        ('{"name": "Ada", "age": 36}', 1, 1),
        (' \n{"name": "\u00c4da \\ud83d\\ude00"}\n', 1, 1),
        ('<think>{"name": 1}</think>{"name": "Ada"}', 1, 1),
        ('Here it is:\n```json\n{"name": "Ada"}\n```\nDone.', 1, 1),
        ('```\n{"name": "Ada"}\n```', 1, 1),
        ('```json\n{"name": "Ada"}\n```\n```json\n{"name": "Bob"}\n```', 0, 0),
        ('{"name": "Ada"} and more', 0, 0),
        ('{"name": "Ada", "name": "Bob"}', 0, 0),
        ('{"name": "Ada", "age": NaN}', 0, 0),
        ('{"name": "Ada", "age": -1}', 1, 0),
        ('{"name": "Ada", "age": 1.5}', 1, 0),
        ('{"name": "Ada", "other": 1}', 1, 0),
        ("null", 1, 0),
        ("[]", 1, 0),
        ("5", 1, 0),
        ("", 0, 0),
        ("[" * 100_000, 0, 0),
        ("[" * 200 + "]" * 200, 0, 0),
        ("9" * 100_000, 0, 0),
    ],
)
def test_what_fits(text, is_json, does_fit):
    assert of(valid_json, text) == [is_json]
    assert of(fits(SCHEMA), text, [{"role": "assistant", "content": text}]) == [does_fit] * 2


def test_other_values():
    reward = fits(SCHEMA, fenced=False, invalid=-1.0, parses=0.2)
    assert of(reward, "```\n{}\n```", "{}", '{"name": ""}') == [-1.0, 0.2, 1.0]


def test_a_schema_in_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    assert of(fits(str(path)), '{"name": "Ada"}') == [1.0]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        fits(str(path))
    with pytest.raises(ValueError, match="cannot read the schema"):
        fits(str(tmp_path / "missing.json"))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nothing"}, "the schema is none"),
        ({"$ref": "https://example.org/schema.json"}, "outside of itself"),
        ({"properties": {"a": {"$ref": "other.json#/x"}}}, "outside of itself"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "which it does not have"),
    ],
)
def test_a_schema_is_checked_when_the_reward_is_made(schema, said):
    with pytest.raises(ValueError, match=said):
        fits(schema)


def test_a_recursive_schema_has_an_end():
    reward = fits({"$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}, "$ref": "#/$defs/list"})
    assert of(reward, "[[], [[]]]", "[1]", "[" * 99 + "]" * 99) == [1.0, 0.0, 1.0]
