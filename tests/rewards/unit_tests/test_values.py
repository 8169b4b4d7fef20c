import datetime
import json
import math
import os
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.rewards.unit_tests.values import MOST_MESSAGE_BYTES, CannotCross, ChannelBroken, decode, encode, receive, send

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.text() | st.binary()
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(HASHABLE, inner, max_size=3) | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=10,
)


def refuse(value):
    raise CannotCross(type(value).__name__)


def refuse_tag(tag, content):
    raise ChannelBroken(tag)


def crossed(value):
    return decode(json.loads(json.dumps(encode(value, refuse))), refuse_tag)


def shape(value):
    """A value with every type in it spelled out, so that True and 1 differ."""
    if isinstance(value, dict):
        return type(value), [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(shape(item)) for item in value)
    return (type(value), [shape(item) for item in value]) if isinstance(value, list | tuple) else (type(value), repr(value))


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_values_keep_their_exact_types(value):
    assert shape(crossed(value)) == shape(value)


@pytest.mark.parametrize(
    "value",
    [
        *(-0.0, math.inf, -math.inf, 2**63, -(10**5000), 2**53 - 1, 2**53, "\ud800", "\0", bytearray(b"x"), range(3, 9, 2), ...),
        *(Decimal("1.10"), Fraction(1, 3), datetime.date(2020, 2, 29), datetime.timedelta(days=-1, microseconds=5)),
        *(Counter("aab"), OrderedDict(b=1, a=2), deque([1, 2]), (), [], {}, set(), frozenset(), {"t": "int", "v": "5"}),
    ],
    ids=lambda value: str(type(value)),
)
def test_other_values_cross_too(value):
    result = crossed(value)
    assert result == value
    assert type(result) is type(value)
    assert math.copysign(1, result) == math.copysign(1, value) if isinstance(value, float) else True


def test_not_a_number_stays_one():
    assert math.isnan(crossed(math.nan))
    assert type(crossed(defaultdict(list, {1: 2}))) is defaultdict


class Whole(int):
    pass


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value", [Whole(3), Text("x"), object(), len, type, [Whole(1)], {Text("a"): 1}, iter([]), (i for i in ())], ids=repr
)
def test_no_other_type_crosses(value):
    with pytest.raises(CannotCross):
        crossed(value)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_depth_and_number_of_values_have_an_end():
    assert crossed(nested(100)) == nested(100)
    with pytest.raises(CannotCross, match="deep"):
        crossed(nested(1000))
    double = [1]
    for _ in range(40):
        double = [double, double]
    with pytest.raises(CannotCross, match="more than"):
        crossed(double)


@pytest.mark.parametrize(
    "data",
    [
        {"t": "object", "v": 1},
        {"t": "int", "v": 5},
        {"t": "int", "v": "zz"},
        {"t": "set", "v": [[1]]},
        {"t": "dict", "v": [1]},
        {"t": "dict", "v": [[1, 2, 3]]},
        {"t": "dict", "v": [[[1], 2]]},
        {"t": "complex", "v": [1, 2, 3]},
        {"t": "range", "v": [1, 2, 0]},
        {"t": "Fraction", "v": "1/0"},
        {"t": "eval", "v": "1"},
        {"t": ["set"], "v": []},
        {"t": "set"},
        {"a": 1},
        nested(500),
    ],
    ids=lambda data: str(data)[:30],
)
def test_what_is_no_value_is_refused(data):
    with pytest.raises(ChannelBroken):
        decode(data, refuse_tag)


def test_messages_cross_a_pipe_and_garbage_does_not():
    read, write = os.pipe()
    send(write, ["call", {"t": "int", "v": "0x10"}])
    assert receive(read) == ["call", {"t": "int", "v": "0x10"}]
    with pytest.raises(CannotCross, match="MiB"):
        send(write, "x" * MOST_MESSAGE_BYTES)
    for garbage in (b"\xff\xff\xff\xff", b"\x02\0\0\0no", b"\x04\0\0\0" + b"[[[["):
        os.write(write, garbage)
        with pytest.raises(ChannelBroken):
            receive(read)
    os.write(write, b"\x09\0\0\0half")
    os.close(write)
    with pytest.raises(ChannelBroken, match="gone"):
        receive(read)
    os.close(read)


UTC_PLUS_2 = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize("zone", [None, datetime.UTC, UTC_PLUS_2])
def test_times_cross(zone):
    now = datetime.datetime(2024, 2, 29, 23, 59, 59, 7, tzinfo=zone)
    assert crossed(now) == now
    assert type(crossed(now)) is datetime.datetime
    assert crossed(now.timetz()) == now.timetz()
    assert type(crossed(now.date())) is datetime.date
    with pytest.raises(ChannelBroken, match="no datetime"):
        decode({"t": "datetime", "v": "now"}, refuse_tag)
