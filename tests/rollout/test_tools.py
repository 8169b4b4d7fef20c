"""Schemas from type hints and docstrings, and arguments as the hints want them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Literal

import pytest

from agentrl.environment import Environment, tool_limits
from agentrl.errors import ConfigError
from agentrl.rollout.arguments import Unfit
from agentrl.rollout.tools import describe_tool, describe_tools


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0


class Board(Environment):
    def paint(self, place: str, where: Point, color: Color, times: int = 1, schema: dict[str, Any] | None = None) -> str:
        """Paint a place.

        It stays painted
        for ever.

        Args:
            place: where it is, with
                leading zeros.
            color (Color): what color.

        Returns:
            Nothing useful.
        """
        return f"{place} {where} {color} {times} {schema}"

    def look(self) -> str:
        return "nothing"

    def _hidden(self) -> None: ...


def test_schema_of_a_method() -> None:
    paint = describe_tool("paint", Board().paint).schema
    assert paint["type"] == "function"
    function = paint["function"]
    assert function["name"] == "paint"
    assert function["description"] == "Paint a place.\nIt stays painted\nfor ever."
    parameters = function["parameters"]
    assert parameters["properties"]["place"] == {"type": "string", "description": "where it is, with\nleading zeros."}
    assert parameters["properties"]["times"] == {"type": "integer", "default": 1}
    assert parameters["required"] == ["place", "where", "color"]
    assert parameters["additionalProperties"] is False
    assert "title" not in parameters


def test_tools_of_an_environment_are_its_public_methods() -> None:
    tools = describe_tools(Board())
    assert list(tools) == ["look", "paint"]
    assert tools["look"].schema["function"]["parameters"]["properties"] == {}
    assert tools["look"].validate({}) == {}


def test_arguments_become_what_the_hints_say() -> None:
    paint = describe_tool("paint", Board().paint)
    given = {"place": "020", "where": '{"x": "3"}', "color": "red", "times": "42", "schema": '{"a": 1}'}
    assert paint.validate(given) == {"place": "020", "where": Point(3), "color": Color.RED, "times": 42, "schema": {"a": 1}}


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "lack 'place'"),
        ({"place": 20, "where": {"x": 1}, "color": "red"}, "place must be a string, got 20"),
        ({"place": "", "where": {"x": 1}, "color": "green"}, 'one of "red", "blue"'),
        ({"place": "", "where": {}, "color": "red"}, "lack 'x'"),
        ({"place": "", "where": {"x": 1}, "color": "red", "z": 1}, "unknown 'z'"),
    ],
)
def test_other_arguments_are_refused_with_a_message_for_the_model(given: dict[str, Any], part: str) -> None:
    with pytest.raises(Unfit) as caught:
        describe_tool("paint", Board().paint).validate(given)
    assert part in str(caught.value)


def test_hints_beyond_the_schema_are_held_by_pydantic() -> None:
    from typing import Annotated

    from pydantic import Field

    def roll(sides: Annotated[int, Field(ge=2)], mode: Literal["fair", "loaded"] = "fair") -> None: ...

    roll.__annotations__ = {"sides": Annotated[int, Field(ge=2)], "mode": Literal["fair", "loaded"]}
    tool = describe_tool("roll", roll)
    assert tool.schema["function"]["parameters"]["properties"]["sides"]["minimum"] == 2
    with pytest.raises(Unfit, match="sides: Input should be greater than or equal to 2"):
        tool.validate({"sides": 1})
    with pytest.raises(Unfit, match="mode must be one of"):
        tool.validate({"sides": 6, "mode": "odd"})


def test_signatures_that_no_model_can_call() -> None:
    def many(*values: int) -> None: ...

    def odd(value: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    class Opaque: ...

    def strange(value: Any) -> None: ...

    strange.__annotations__ = {"value": Opaque}
    with pytest.raises(ConfigError, match=r"named parameters only"):
        describe_tool("many", many)
    with pytest.raises(ConfigError, match=r"'Missing' is not defined"):
        describe_tool("odd", odd)
    with pytest.raises(ConfigError, match=r"no JSON schema"):
        describe_tool("strange", strange)


def test_a_plain_function_is_a_tool() -> None:
    def multiply(a: int, b: int = 2) -> int:
        """Multiplies two numbers.

        Args:
            a: The first number.
            b: The second number.

        Returns:
            The product.
        """
        return a * b

    multiply.__annotations__ = {"a": int, "b": int, "return": int}
    tool = describe_tool("multiply", multiply)
    assert tool.schema["function"]["description"] == "Multiplies two numbers."
    assert tool.schema["function"]["parameters"]["properties"]["a"] == {"type": "integer", "description": "The first number."}
    assert tool.call(**tool.validate({"a": "3"})) == 6
    bound = describe_tool("double", partial(multiply, 2))
    assert bound.schema["function"]["parameters"]["properties"].keys() == {"b"}


def test_an_object_that_can_be_called_is_a_tool() -> None:
    class Shout:
        """Not this text."""

        def __call__(self, text: str) -> str:
            return text.upper()

    Shout.__call__.__annotations__ = {"text": str, "return": str}
    assert describe_tool("shout", Shout()).validate({"text": "hi"}) == {"text": "hi"}


def test_what_has_no_signature_is_refused() -> None:
    with pytest.raises(ConfigError, match="no signature to read"):
        describe_tool("type", type)


def test_limits_of_a_method() -> None:
    class Slow(Environment):
        @tool_limits(timeout_s=90, max_output_chars=5)
        def wait(self) -> str:
            return ""

        def look(self) -> str:
            return ""

    tools = describe_tools(Slow())
    assert (tools["wait"].timeout_s, tools["wait"].max_output_chars) == (90, 5)
    assert (tools["look"].timeout_s, tools["look"].max_output_chars) == (None, None)
