"""Values as a program writes them: Python's literals with JSON's names for constants, and Gemma's own.

A reader of its own and not `ast`, for a value must be found in the middle of a text, and must cost no more than its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*")
_KEY = re.compile(r"[^\s:,{}\[\]()]+")
_SPACE = re.compile(r"[ \t\r\n]*")
_CONSTANTS: dict[str, Any] = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPE = re.compile(r"\\(\n|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {
    "\n": "",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "0": "\0",
    "/": "/",
}
MOST_DEPTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Literals:
    """A reader of literals; its methods raise `ValueError` with what was expected."""

    quotes: tuple[str, ...] = ('"""', "'''", '"', "'")
    """Marks around a string, the longer ones first."""
    escapes: bool = True
    """Whether a backslash in a string escapes what follows."""
    bare_keys: bool = False
    """Whether the keys of an object stand without quotes."""

    def value(self, text: str, at: int, depth: int = 0) -> tuple[Any, int]:
        """The value that begins at `at`, space before it skipped, and where it ends."""
        if depth > MOST_DEPTH:
            raise ValueError("nested too deeply")
        at = after_space(text, at)
        for quote in self.quotes:
            if text.startswith(quote, at):
                return self._string(text, at + len(quote), quote)
        if text.startswith(("[", "("), at):
            return self._items(text, at, "]" if text[at] == "[" else ")", depth)
        if text.startswith("{", at):
            return self.mapping(text, at + 1, "}", ":", depth)
        word = _WORD.match(text, at)
        if word is not None and word.group() in _CONSTANTS:
            return _CONSTANTS[word.group()], word.end()
        number = _NUMBER.match(text, at)
        if number is None:
            raise ValueError(f"a value was expected, got {text[at : at + 20]!r}")
        return _number(number.group()), number.end()

    def mapping(self, text: str, at: int, close: str, colon: str, depth: int = 0) -> tuple[dict[str, Any], int]:
        """Pairs up to `close`; `at` is behind the opening bracket."""
        pairs: dict[str, Any] = {}
        at = after_space(text, at)
        while not text.startswith(close, at):
            key, at = self._key(text, at, depth, colon)
            at = after_space(text, at)
            if not text.startswith(colon, at):
                raise ValueError(f"{colon!r} was expected behind {key!r}")
            pairs[key], at = self.value(text, at + len(colon), depth + 1)
            at = self._next(text, at, close)
        return pairs, at + len(close)

    def _key(self, text: str, at: int, depth: int, colon: str) -> tuple[str, int]:
        bare = (_WORD if colon == "=" else _KEY).match(text, at)
        if (colon == "=" or self.bare_keys) and bare is not None and not text.startswith(self.quotes, at):
            return bare.group(), bare.end()
        key, at = self.value(text, at, depth + 1)
        if not isinstance(key, str):
            raise ValueError(f"a name was expected, got {key!r}")
        return key, at

    def _items(self, text: str, at: int, close: str, depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        at = after_space(text, at + 1)
        while not text.startswith(close, at):
            item, at = self.value(text, at, depth + 1)
            items.append(item)
            at = self._next(text, at, close)
        return items, at + 1

    def _next(self, text: str, at: int, close: str) -> int:
        """Behind a comma, or at the closing bracket."""
        at = after_space(text, at)
        if text.startswith(",", at):
            return after_space(text, at + 1)
        if not text.startswith(close, at):
            raise ValueError(f"a comma or {close!r} was expected, got {text[at : at + 20]!r}")
        return at

    def _string(self, text: str, start: int, quote: str) -> tuple[str, int]:
        if not self.escapes:
            end = text.find(quote, start)
            inner = text[start:end]
        else:
            found = _quoted(quote).match(text, start)
            inner, end = (found.group(1), found.end(1)) if found is not None else ("", -1)
        if end < 0:
            raise ValueError("a string does not end")
        return _ESCAPE.sub(_unescaped, inner) if self.escapes else inner, end + len(quote)


@lru_cache
def _quoted(quote: str) -> re.Pattern[str]:
    return re.compile(rf"((?:[^\\]|\\.)*?){quote}", re.DOTALL)


def after_space(text: str, at: int) -> int:
    """The place of the first character from `at` on that is no space."""
    space = _SPACE.match(text, at)
    return space.end() if space is not None else at


def _unescaped(found: re.Match[str]) -> str:
    code = found.group(1)
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else found.group()
    return _ESCAPED.get(code, found.group())  # as in Python, what escapes nothing stays


def _number(text: str) -> int | float:
    return float(text) if any(mark in text for mark in ".eE") else int(text)
