"""Values as they cross between the tests and the code that is tested: exact built-in types, and nothing else.

Each message is a length and JSON. None, booleans, integers, floats, strings and lists are JSON's own; every other type that may cross is
an object with its tag. What arrives is always of the very type that is named, made here and now: no class of the other side ever comes
along, and with it no method. Runs inside sandboxes: only the standard library.
"""

from __future__ import annotations

import datetime
import fractions
import json
import os
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from typing import Any

MOST_MESSAGE_BYTES = 8 * 2**20
MOST_DEPTH = 150
"""Of values in values."""
MOST_VALUES = 1_000_000
"""In one message, counted again wherever the same one occurs again."""

_SMALL = 2**53
_LENGTH = struct.Struct("<I")

Foreign = Callable[[Any], Any]
"""What becomes of a value that may not cross: returns what is sent in its place, or raises `CannotCross`."""


class ChannelBroken(Exception):
    """The other side has gone, or does not keep to the form."""


class CannotCross(Exception):
    """A value is of a type that may not cross, or there is too much of it."""


def encode(value: Any, foreign: Foreign) -> Any:
    """A value as JSON can hold it. Raises `CannotCross`."""
    return _Encoder(foreign).encode(value, 0)


class _Encoder:
    def __init__(self, foreign: Foreign) -> None:
        self._foreign = foreign
        self._count = 0

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self._count += 1
        if depth > MOST_DEPTH:
            raise CannotCross(f"a value is nested more than {MOST_DEPTH} deep")
        if self._count > MOST_VALUES:
            raise CannotCross(f"a value holds more than {MOST_VALUES} others")
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if kind is int:
            return value if -_SMALL < value < _SMALL else {"t": "int", "v": hex(value)}
        if kind is list:
            return [self.encode(item, depth + 1) for item in value]
        if kind in _SIMPLE:
            return {"t": kind.__name__, "v": _SIMPLE[kind](value)}
        if kind in _ITEMS:
            return {"t": kind.__name__, "v": [self.encode(item, depth + 1) for item in value]}
        if kind in _PAIRS:
            return {"t": kind.__name__, "v": [[self.encode(key, depth + 1), self.encode(item, depth + 1)] for key, item in value.items()]}
        return self._foreign(value)


def decode(data: Any, special: Callable[[str, Any], Any], depth: int = 0) -> Any:
    """The value that JSON holds.

    Args:
        data: from JSON.
        special: called with tag and content of what is no value here; raises `ChannelBroken` for what it does not know.
        depth: of this value in others.
    Raises: `ChannelBroken`.
    """
    if depth > MOST_DEPTH:
        raise ChannelBroken("a value is nested too deep")
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is list:
        return [decode(item, special, depth + 1) for item in data]
    if type(data) is not dict or data.keys() != {"t", "v"} or type(data["t"]) is not str:
        raise ChannelBroken("a message holds something that is no value")
    tag, content = data["t"], data["v"]
    try:
        if tag in _FROM_TEXT and type(content) is str:
            return _FROM_TEXT[tag](content)
        if tag in _FROM_NUMBERS and type(content) is list and all(type(item) in (int, float) for item in content):
            return _FROM_NUMBERS[tag](content)
        if tag in _FROM_ITEMS and type(content) is list:
            return _FROM_ITEMS[tag]([decode(item, special, depth + 1) for item in content])
        if tag in _FROM_PAIRS and type(content) is list:
            return _FROM_PAIRS[tag]([(decode(key, special, depth + 1), decode(item, special, depth + 1)) for key, item in content])
    except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise ChannelBroken(f"a message holds no {tag}: {error}") from None
    return special(tag, content)


_SIMPLE: dict[type, Callable[[Any], Any]] = {
    complex: lambda value: [value.real, value.imag],
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    range: lambda value: [value.start, value.stop, value.step],
    Decimal: str,
    fractions.Fraction: str,
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    datetime.date: datetime.date.isoformat,
    datetime.datetime: datetime.datetime.isoformat,
    datetime.time: datetime.time.isoformat,
    type(...): lambda _: "...",
}
_ITEMS = {tuple, set, frozenset, deque}
_PAIRS = {dict, OrderedDict, Counter, defaultdict}

_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": Decimal,
    "Fraction": fractions.Fraction,
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "time": datetime.time.fromisoformat,
    "ellipsis": lambda _: ...,
}
_FROM_NUMBERS: dict[str, Callable[[list[Any]], Any]] = {
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "timedelta": lambda parts: datetime.timedelta(*parts),
}
_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_FROM_PAIRS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda pairs: Counter(dict(pairs)),
    "defaultdict": lambda pairs: defaultdict(None, pairs),
}


def send(fd: int, message: Any) -> None:
    """Write one message of JSON data. Raises `CannotCross` for one that is too long, `ChannelBroken` where nobody reads."""
    try:
        data = json.dumps(message, separators=(",", ":")).encode()
    except ValueError as error:
        raise CannotCross(str(error)) from None
    if len(data) > MOST_MESSAGE_BYTES:
        raise CannotCross(f"a value takes more than {MOST_MESSAGE_BYTES // 2**20} MiB")
    view = memoryview(_LENGTH.pack(len(data)) + data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise ChannelBroken(f"the other side has gone ({error.strerror})") from None


def receive(fd: int) -> Any:
    """Read one message of JSON data. Raises `ChannelBroken`."""
    (length,) = _LENGTH.unpack(_exactly(fd, _LENGTH.size))
    if length > MOST_MESSAGE_BYTES:
        raise ChannelBroken("a message is too long")
    data = _exactly(fd, length)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ChannelBroken("a message is no JSON") from None


def _exactly(fd: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.read(fd, length - len(data))
        if not part:
            raise ChannelBroken("the other side has gone")
        data += part
    return bytes(data)


def read_job(fd: int) -> Any:
    """What a program was told when it was started: a file of JSON, from its start."""
    data = bytearray()
    while part := os.pread(fd, 2**20, len(data)):
        data += part
    os.close(fd)
    return json.loads(bytes(data))
