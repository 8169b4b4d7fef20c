"""The outer structure of a written answer: lists, brackets, unions and relations around single formulas."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_DEPTH = 8
"""Brackets nested deeper than this are refused: the parser of single formulas takes exponential time on them."""

RELATIONS = frozenset(("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx"))

_CLOSES = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",), "\\lbrace": ("\\rbrace",), "\\langle": ("\\rangle",)}
_BRACKETS = {"\\{": "{", "\\}": "}", "\\lbrace": "{", "\\rbrace": "}", "\\langle": "<", "\\rangle": ">"}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_THOUSANDS = re.compile(r"[-+]?\D{0,3}\d{1,3}(?:,\d{3})+(?:\.\d*)?(?:[^,\d][^,]*)?")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A single formula, number or word."""

    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Several parts: `kind` is the pair of brackets around them, `,` for none, `:` for a ratio, `cup` for a union of sets."""

    kind: str
    parts: tuple[Node, ...]
    word: str = field(default="", compare=False)
    """`or` or `and`, where one stands between parts."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the parts means something."""
        return self.kind not in (",", "{}", "cup")


@dataclass(frozen=True, slots=True)
class Relation:
    r"""`parts[0] signs[0] parts[1] ...`, as in `3 < x \le 5`."""

    signs: tuple[str, ...]
    parts: tuple[Node, ...]


Node = Leaf | Listing | Relation


class Malformed(ValueError):
    """Brackets that do not match or nest too deeply, or a relation without a side."""


def parse(text: str) -> Node:
    """Read a normalized text; raises `Malformed` where it has no structure that could be graded."""
    tokens = _TOKEN.findall(text)
    return _parse(tokens, _depths(tokens), bracketed=False)


def _depths(tokens: list[str]) -> list[int]:
    """How many brackets enclose each token; the brackets themselves count as outside."""
    stack: list[str] = []
    depths: list[int] = []
    for token in tokens:
        if stack and token in _CLOSES[stack[-1]]:
            stack.pop()
            depths.append(len(stack))
            continue
        depths.append(len(stack))
        if token in _CLOSES:
            stack.append(token)
        if len(stack) > MAX_DEPTH:
            raise Malformed(f"brackets nest deeper than {MAX_DEPTH}")
    if stack:
        raise Malformed(f"{stack[-1]} is never closed")
    return depths


def _parse(tokens: list[str], depths: list[int], *, bracketed: bool) -> Node:
    tokens, depths = _stripped(tokens, depths)
    text = "".join(tokens)
    outside = [depth == depths[0] for depth in depths]
    if separators := _separators(tokens, outside, bracketed=bracketed):
        words = {"".join(tokens[start:end]) for start, end in separators} & {"and", "or"}
        return Listing(",", tuple(_split(tokens, depths, separators)), words.pop() if len(words) == 1 else "")
    if signs := [(at, at + 1) for at, token in enumerate(tokens) if outside[at] and token in RELATIONS]:
        parts = _split(tokens, depths, signs)
        if len(signs) == len(parts) == 1 and tokens[0] == "=":  # "= 42"
            return parts[0]
        if len(parts) != len(signs) + 1:
            raise Malformed(f"{tokens[signs[0][0]]} lacks a side")
        return Relation(tuple(tokens[at] for at, _ in signs), tuple(parts))
    for mark, kind in (("\\cup", "cup"), (":", ":")):
        if places := [(at, at + 1) for at, token in enumerate(tokens) if outside[at] and token == mark]:
            return Listing(kind, tuple(_split(tokens, depths, places)))
    if "\\pm" in tokens or "\\mp" in tokens:
        swapped = {"\\pm": "-", "\\mp": "+"}
        other = [swapped.get(token, token) for token in tokens]
        plain = [{"-": "+", "+": "-"}[swapped[token]] if token in swapped else token for token in tokens]
        return Listing(",", (_parse(plain, depths, bracketed=False), _parse(other, depths, bracketed=False)))
    return _enclosed(tokens, outside, depths) or Leaf(text)


def _separators(tokens: list[str], outside: list[bool], *, bracketed: bool) -> list[tuple[int, int]]:
    """Places of commas, semicolons and, outside brackets, the words `and` and `or` between parts; not of commas that group digits."""
    commas = [at for at, token in enumerate(tokens) if outside[at] and token in (",", ";")]
    spaced = [at for at in commas if tokens[at + 1 : at + 2] == [" "]]
    if spaced:
        commas = spaced
    elif not bracketed and _THOUSANDS.fullmatch("".join(tokens)):
        commas = []
    words = []
    for at in range(len(tokens)):
        for word in ("and", "or"):
            around = [*tokens[at - 1 : at], *tokens[at + len(word) : at + len(word) + 1]]
            if (
                not bracketed
                and outside[at]
                and "".join(tokens[at : at + len(word)]) == word
                and not any(neighbour.isalpha() for neighbour in around)
            ):
                words.append((at, at + len(word)))
    return sorted([(at, at + 1) for at in commas] + words)


def _enclosed(tokens: list[str], outside: list[bool], depths: list[int]) -> Node | None:
    """What brackets around the whole text hold; plain brackets around a single formula mean nothing."""
    if len(tokens) < 3 or tokens[0] not in _CLOSES or any(outside[1:-1]):
        return None
    inner = _parse(tokens[1:-1], depths[1:-1], bracketed=True)
    several = isinstance(inner, Listing) and inner.kind == ","
    kind = _BRACKETS.get(tokens[0], tokens[0]) + _BRACKETS.get(tokens[-1], tokens[-1])
    if tokens[0] == "{" or (kind == "()" and not several):
        return inner
    return Listing(kind, inner.parts if several and isinstance(inner, Listing) else (inner,))


def _split(tokens: list[str], depths: list[int], places: list[tuple[int, int]]) -> list[Node]:
    """The parts between places; empty ones, as after `1, 2, and`, are left out."""
    starts = [0, *(end for _, end in places)]
    ends = [*(start for start, _ in places), len(tokens)]
    pieces = [_stripped(tokens[start:end], depths[start:end]) for start, end in zip(starts, ends, strict=True)]
    return [_parse(piece, piece_depths, bracketed=False) for piece, piece_depths in pieces if piece]


def _stripped(tokens: list[str], depths: list[int]) -> tuple[list[str], list[int]]:
    start, end = 0, len(tokens)
    while start < end and tokens[start] == " ":
        start += 1
    while end > start and tokens[end - 1] == " ":
        end -= 1
    return tokens[start:end], depths[start:end]
