import json
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs.adapters.plain_json import packed, unpacked
from agentrl.errors import EnvironmentFailure

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
keys = st.text(max_size=5) | st.integers() | st.sampled_from(["tuple", "map"]) | st.tuples(st.integers(), st.integers())
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


@given(values)
def test_what_is_packed_travels_as_json_and_comes_back_as_it_was(value):
    back = unpacked(json.loads(json.dumps(packed(value))))
    assert repr(back) == repr(value)  # repr tells a tuple from a list, 1 from True and from 1.0


def test_an_enumeration_is_its_value_and_other_types_are_refused():
    class Side(Enum):
        LEFT = "left"

    assert packed([Side.LEFT]) == ["left"]
    for odd in ({1, 2}, object(), b"x"):
        with pytest.raises(EnvironmentFailure, match="only JSON's types and tuples can travel"):
            packed([odd])
