"""Whether two read answers mean the same: structure first, then numbers exactly, then formulas by value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agentrl.rewards.math_strict import is_letters
from agentrl.rewards.math_symbolic import DECIMAL_TOLERANCE, constant, equal, evaluate_once, formula, proportional
from agentrl.rewards.math_text import Number, compact, parse_number, split_unit
from agentrl.rewards.math_tree import Leaf, Listing, Node, Relation

_WORDS = re.compile(r"\\text ?\{([^{}]*)\}|([A-Za-z][A-Za-z' -]{2,}|[Nn][Oo])")
_NAMED = re.compile(
    r"\\(?:angle|triangle|measuredangle|odot|square)(?![A-Za-z])"
    r"|\\(?:overline|overrightarrow|overleftrightarrow|widehat|vec) ?\{ ?[A-Z]{2,} ?\}"
    r"|(?!NO)[A-Z]{2}$"
    r"|\d{4}([-/])\d{1,2}\1\d{1,2}$|\d{1,2}([-/])\d{1,2}\2\d{4}$"
)
"""Figures, named by their points, and dates: order means something, and only the same text is known to be the same."""
_CHOICE = re.compile(r"\(?([A-Ja-j])\)?")
_NAME = re.compile(r"[A-Za-z\\{}_ '()|]+|[A-Za-z]_\{?\w+\}?")
_SYMBOL = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?|\\[A-Za-z]+")
_DOTS = frozenset(("\\ldots", "\\dots", "\\cdots", "..."))
MOST_PLAIN_PARTS = 20
"""Longer lists are compared where that can be killed: it takes the square of their length."""
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a data set allows beyond equality."""

    interval_for_inequality: bool = False
    """`x > 3` is also right where the gold is `(3, \\infty)`, and the other way round."""
    round_to_gold: bool = False
    """A number is right that rounds to a decimal gold at the gold's own digits."""
    percent_as_number: bool = False
    """`28 %` is also right where the gold is `28`, and the other way round."""


STRICT = Policy()
"""Nothing beyond equality."""


def check_gold(node: Node) -> None:
    """Raise `Unparsed` or `TooLarge` unless every part of a gold answer can be compared, for which each is evaluated once."""
    for leaf in _leaves(node):
        if not _is_plain_leaf(leaf):
            evaluate_once(formula(split_unit(leaf.text)[0]))


def is_plain(node: Node) -> bool:
    """Whether an answer is made of few numbers and words only, which are compared without computer algebra."""
    leaves = _leaves(node)
    return len(leaves) <= MOST_PLAIN_PARTS and all(map(_is_plain_leaf, leaves)) and not _has_relation(node)


def _leaves(node: Node) -> list[Leaf]:
    return [node] if isinstance(node, Leaf) else [leaf for part in node.parts for leaf in _leaves(part)]


def _has_relation(node: Node) -> bool:
    return isinstance(node, Relation) or (isinstance(node, Listing) and any(map(_has_relation, node.parts)))


def _is_plain_leaf(leaf: Leaf) -> bool:
    return _word(leaf.text) is not None or leaf.text in _DOTS or parse_number(split_unit(leaf.text)[0]) is not None


def same(gold: Node, answer: Node, policy: Policy) -> bool:
    """Compare trees. Raises `Unparsed` or `TooLarge` for a formula of the answer that cannot be compared."""
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relation(gold, answer, policy)
    if policy.interval_for_inequality and isinstance(gold, Relation) != isinstance(answer, Relation):
        gold, answer = _as_interval(gold), _as_interval(answer)
    if isinstance(answer, Relation):
        values = _assigned(answer)
        return bool(values) and all(same(gold, value, policy) for value in values)
    if isinstance(gold, Relation):
        values = _assigned(gold)
        return len(values) == 1 and not _is_name(values[0]) and same(values[0], answer, policy)
    if isinstance(gold, Listing) and isinstance(answer, Listing):
        return _same_listing(gold, answer, policy)
    return isinstance(gold, Leaf) and isinstance(answer, Leaf) and _same_leaf(gold.text, answer.text, policy)


def _same_listing(gold: Listing, answer: Listing, policy: Policy) -> bool:
    plain = {gold.kind, answer.kind} <= {",", "{}"}
    if (gold.kind != answer.kind and not plain) or len(gold.parts) != len(answer.parts):
        return False
    if len(names := _names(gold.parts)) > 1 and _names(answer.parts) != names:
        return False  # `2, 3` does not say which is x and which is y
    if {gold.word, answer.word} == {"and", "or"} and any(map(_is_inequality, gold.parts)):
        return False
    if gold.ordered:
        return all(same(*pair, policy) for pair in zip(gold.parts, answer.parts, strict=True))
    left = list(answer.parts)
    for part in gold.parts:
        match = next((candidate for candidate in left if same(part, candidate, policy)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _assigned(relation: Relation) -> tuple[Node, ...]:
    r"""The values that a chain such as `x = 2 + 40 = 42` or `x \in S` gives to a name or to nothing; none where it is an equation."""
    first, *others = relation.parts
    named = isinstance(first, Leaf) and _NAME.fullmatch(first.text) is not None
    if relation.signs == ("\\in",):
        return tuple(others) if named else ()
    if any(sign not in ("=", "\\approx") for sign in relation.signs) or (named and _recurs(first, others)):
        return ()
    return tuple(others) if named else relation.parts


def _is_inequality(node: Node) -> bool:
    return isinstance(node, Relation) and any(sign in _FLIPPED for sign in node.signs)


def _names(parts: tuple[Node, ...]) -> set[str]:
    """The names that get values in a list such as `x = 2, y = 3`."""
    firsts = [part.parts[0] for part in parts if isinstance(part, Relation)]
    return {compact(first.text) for first in firsts if isinstance(first, Leaf)}


def _is_name(node: Node) -> bool:
    """Whether a value is a name itself: what `a = b` says is neither a nor b."""
    return isinstance(node, Leaf) and _SYMBOL.fullmatch(node.text.strip()) is not None


def _recurs(name: Node, values: list[Node]) -> bool:
    """Whether a name is part of what it is said to be: `x = x^2 + 1` is an equation for x."""
    symbol = name.text.strip() if isinstance(name, Leaf) else ""
    own = re.compile(rf"(?<![\\A-Za-z]){re.escape(symbol)}(?![A-Za-z])")
    return any(own.search(leaf.text) for value in values for leaf in _leaves(value))


def _same_relation(gold: Relation, answer: Relation, policy: Policy) -> bool:
    if _same_parts(gold, answer, policy) or _same_parts(gold, _reversed(answer), policy):
        return True
    if len(gold.signs) != 1 or len(answer.signs) != 1:
        return False
    kinds = [relation.signs[0].replace(">", "<").replace("\\ge", "\\le") for relation in (gold, answer)]
    if kinds[0] != kinds[1] or kinds[0] not in ("=", "<", "\\le", "\\ne"):
        return False
    sides = [side for relation in (gold, answer) for side in _rising(relation).parts]
    if not all(isinstance(side, Leaf) for side in sides):
        return False
    left, right, other_left, other_right = (side.text for side in sides if isinstance(side, Leaf))
    differences = (formula(f"({left})-({right})"), formula(f"({other_left})-({other_right})"))
    return proportional(*differences, positive=kinds[0] in ("<", "\\le"))


def _same_parts(gold: Relation, answer: Relation, policy: Policy) -> bool:
    return gold.signs == answer.signs and all(same(*pair, policy) for pair in zip(gold.parts, answer.parts, strict=True))


def _reversed(relation: Relation) -> Relation:
    return Relation(tuple(_FLIPPED.get(sign, sign) for sign in reversed(relation.signs)), tuple(reversed(relation.parts)))


def _rising(relation: Relation) -> Relation:
    return _reversed(relation) if relation.signs[0] in (">", "\\ge") else relation


def _as_interval(node: Node) -> Node:
    r"""`3 < x \le 5` as `(3, 5]`; everything else as it is."""
    if not isinstance(node, Relation) or any(sign not in _FLIPPED for sign in node.signs):
        return node
    rising = _rising(node)
    if any(sign in (">", "\\ge") for sign in rising.signs) or len(rising.parts) > 3:
        return node
    names = tuple(isinstance(part, Leaf) and "\\" not in part.text and _NAME.fullmatch(part.text) is not None for part in rising.parts)
    ends: dict[tuple[bool, ...], tuple[Node, ...]] = {
        (True, False): (Leaf("-\\infty"), rising.parts[-1]),
        (False, True): (rising.parts[0], Leaf("\\infty")),
        (False, True, False): (rising.parts[0], rising.parts[-1]),
    }
    if names not in ends:
        return node
    opening = "[" if not names[0] and rising.signs[0] == "\\le" else "("
    closing = "]" if not names[-1] and rising.signs[-1] == "\\le" else ")"
    return Listing(opening + closing, ends[names])


def _word(text: str) -> str | None:
    """The word or phrase that a text is, None where it is a formula. Two letters are a product, and so is `abc`; three or more a word."""
    if _NAMED.match(text) or (text.isupper() and text.isalpha() and is_letters(text)):
        return "".join(text.split())
    match = _WORDS.fullmatch(text)
    if match is None or (len(match[2] or "") > 2 and is_letters(match[2])):
        return None
    return " ".join((match[1] or match[2] or "").casefold().split())


def _same_leaf(gold: str, answer: str, policy: Policy) -> bool:
    if compact(gold) == compact(answer):
        return True
    words = _word(gold), _word(answer)
    if words[0] is not None or words[1] is not None:
        return _letter(words[0] or gold) == _letter(words[1] or answer)
    if gold in _DOTS or answer in _DOTS:
        return gold in _DOTS and answer in _DOTS
    (gold, gold_unit), (answer, answer_unit) = split_unit(gold), split_unit(answer)
    if gold_unit != answer_unit and ((gold_unit and answer_unit) or "base" in gold_unit + answer_unit):
        return False
    numbers = parse_number(gold), parse_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_number(numbers[0], numbers[1], policy)
    return equal(_value(gold, numbers[0]), _value(answer, numbers[1]))


def _value(text: str, number: Number | None) -> Any:
    return formula(text) if number is None else constant(number.value, decimal=number.decimals is not None)


def _letter(text: str) -> str:
    """A choice such as `(B)` as its letter."""
    match = _CHOICE.fullmatch(text)
    return match[1].casefold() if match else text


def _same_number(gold: Number, answer: Number, policy: Policy) -> bool:
    if gold.value == answer.value:
        return True
    if policy.percent_as_number and gold.percent != answer.percent:
        return gold.value * (100 if gold.percent else 1) == answer.value * (100 if answer.percent else 1)
    if policy.round_to_gold and gold.decimals is not None and gold.percent == answer.percent:
        unit = Fraction(10) ** gold.decimals * (100 if gold.percent else 1)
        return abs(gold.value - answer.value) * unit * 2 <= 1
    if max(gold.decimals or 0, answer.decimals or 0) >= 15:  # 0.30000000000000004: binary rounding, written out
        return abs(gold.value - answer.value) <= abs(gold.value) / 10**15
    written = [number for number in (gold, answer) if number.decimals is not None]
    endless = [number for number in (gold, answer) if number.decimals is None and not _terminates(number)]
    return bool(written and endless) and abs(gold.value - answer.value) <= DECIMAL_TOLERANCE * max(abs(gold.value), abs(answer.value))


def _terminates(number: Number) -> bool:
    """Whether the number can be written as a decimal exactly, so that a decimal has no excuse to differ."""
    rest = number.value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
